"""A file of tenants that changes while it is used."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from carv_client import AsyncTeacherClient, AuthenticationError
from carv_server.serve import RunningServer
from carv_server.settings.tenants import load_tenants
from tests.server.teachers import oracle_teacher
from tests.support.logs import logged
from tests.support.tenants import serving, tenant, token_of


def _table(*names: str) -> str:
    return "".join(
        f'[[tenants]]\nid = "{name}"\ntoken_sha256 = ["{tenant(name).token_sha256[0].hex()}"]\n'
        for name in names
    )


def test_the_file_of_tenants_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new tenant gets in and an old one is out without a restart; a broken file changes
    nothing, the log says what is wrong with it, and the next sound one is taken.

    Breaks with: a watcher that is not started, or `Watcher.look` without its `except`.
    """

    async def scenario() -> None:
        file = tmp_path / "tenants.toml"
        file.write_text(_table("a"))
        tenants = load_tenants(file, ["mixture"])

        async def allowed(server: RunningServer, name: str) -> bool:
            async with AsyncTeacherClient(server.address, token=token_of(name)) as client:
                try:
                    await client.list_teachers()
                except AuthenticationError:
                    return False
                return True

        async def until(server: RunningServer, **wanted: bool) -> None:
            for _ in range(100):
                if {name: await allowed(server, name) for name in wanted} == wanted:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"not {wanted}")

        async with serving({"mixture": oracle_teacher()}, tenants, file=file) as server:
            await until(server, a=True, b=False)
            with caplog.at_level(logging.INFO, "carv_server"):
                file.write_text(_table("a", "b") + '[[tenants]]\nid = "b"\nweigth = 1\n')
                await logged(caplog, "kept as they were")
            await asyncio.sleep(0.3)  # some more looks at the file
            await until(server, a=True, b=False)
            assert "did you mean 'weight'" in caplog.text
            assert caplog.text.count("kept as they were") == 1
            file.write_text("[[tenants]]\nid = [1]\n")
            await logged(caplog, "kept as they were", 2)
            file.write_text(_table("a", "b"))
            await until(server, a=True, b=True)
            file.write_text(_table("b"))
            await until(server, a=False, b=True)
            file.unlink()
            await logged(caplog, "kept as they were", 3)
            await until(server, a=False, b=True)

    asyncio.run(scenario())
