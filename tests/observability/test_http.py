"""The metrics port: read only, bounded, and true about the server's state.

Breaks it (tried): ready while draining; a hundred times the connections, or the head's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from carv_server.config import ServerConfig
from carv_server.observability.http import HttpServer, ListenError, Reply
from carv_server.replicas.preparation import PreparedTeacher
from carv_server.serve import RunningServer
from carv_server.settings.observability import MetricsConfig
from tests.observability.support import fetch, watched
from tests.server.teachers import GatedTeacher, oracle_teacher
from tests.server.wire import create_async, estimate_request, path
from tests.support.until import until


@asynccontextmanager
async def pages() -> AsyncIterator[HttpServer]:
    def broken(accept: str) -> Reply:
        raise RuntimeError("no such page after all")

    server = HttpServer(
        "127.0.0.1:0",
        {"/a": lambda accept: Reply(200, f"a for {accept}".encode()), "/broken": broken},
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def test_what_is_not_a_get_of_a_page_is_refused() -> None:
    async def main() -> None:
        async with pages() as server:
            status, headers, body = await fetch(server.address, "/a?x=1", accept="text/html")
            assert (status, body) == (200, "a for text/html")
            assert headers["content-length"] == "15" and headers["connection"] == "close"
            status, headers, body = await fetch(server.address, "/a", method="HEAD")
            assert (status, headers["content-length"], body) == (200, "6", "")
            for method in ("POST", "DELETE", "OPTIONS"):
                status, headers, _ = await fetch(server.address, "/a", method=method)
                assert (status, headers["allow"]) == (405, "GET, HEAD")
            for target in ("/", "/../a", "/a/", "//a"):
                assert (await fetch(server.address, target))[0] == 404
            assert (await fetch(server.address, "/a b"))[0] == 400
            assert (await fetch(server.address, "/" + "a" * 20_000))[0] == 431
            status, _, body = await fetch(server.address, "/broken")
            assert status == 500 and "no such page" not in body
            assert (await fetch(server.address, "/a"))[0] == 200

    asyncio.run(main())


async def has_connections(server: HttpServer, count: int) -> None:
    await until(lambda: len(server._connections) == count, f"{count} connections")


def test_connections_that_say_nothing_are_bounded_and_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many that may be silent for long, then one that may not."""
    seconds = "carv_server.observability.http._READ_SECONDS"
    monkeypatch.setattr(seconds, 60.0)

    async def main() -> None:
        async with pages() as server:
            host, _, port = server.address.rpartition(":")
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(32)]
            await has_connections(server, 32)
            with pytest.raises((ConnectionError, IndexError)):  # closed, with or without a reset
                await fetch(server.address, "/a")
            silent.pop()[1].close()
            await has_connections(server, 31)
            monkeypatch.setattr(seconds, 0.2)
            silent.append(await asyncio.open_connection(host, int(port)))
            said = await asyncio.wait_for(silent[-1][0].read(), 20)
            assert said.startswith(b"HTTP/1.1 408 ")
            await has_connections(server, 31)
            monkeypatch.setattr(seconds, 60.0)
            assert (await fetch(server.address, "/a"))[0] == 200
            for _, each in silent:
                each.close()

    asyncio.run(main())


def test_a_client_that_leaves_early_harms_nobody() -> None:
    async def main() -> None:
        async with pages() as server:
            host, _, port = server.address.rpartition(":")
            for sent in (b"", b"GET /a", b"GET /a HTTP/1.1\r\n\r\n"):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(sent)
                writer.transport.abort()
            assert (await fetch(server.address, "/a"))[0] == 200  # accepted after those
            await has_connections(server, 0)

    asyncio.run(main())


def test_an_address_in_use_is_said_so() -> None:
    async def main() -> None:
        async with pages() as server:
            second = HttpServer(server.address, {})
            with pytest.raises(ListenError, match=rf"metrics address {server.address} cannot be"):
                await second.start()

    asyncio.run(main())


def test_ready_once_warm_and_no_more_once_draining() -> None:
    async def main() -> None:
        teacher = GatedTeacher()
        config = ServerConfig(
            address="127.0.0.1:0", drain_seconds=10.0, metrics=MetricsConfig("127.0.0.1:0")
        )
        server = RunningServer(config, {"mixture": PreparedTeacher(teacher, 8, (1, 8))})
        starting = asyncio.create_task(server.__aenter__())
        await asyncio.to_thread(teacher.entered.wait, 10)
        address = server.observability.metrics_address
        assert (await fetch(address, "/livez"))[::2] == (200, "alive\n")
        assert (await fetch(address, "/readyz"))[::2] == (503, "starting\n")
        teacher.gate.set()
        await starting
        assert (await fetch(address, "/readyz"))[::2] == (200, "ready\n")
        status, headers, _ = await fetch(address, "/")
        assert (status, headers["location"]) == (302, "/status")
        await server.drain()
        with pytest.raises(OSError, match="onnect"):
            await fetch(address, "/livez")

    asyncio.run(main())


def test_while_draining_it_answers_and_says_so() -> None:
    async def main() -> None:
        teacher = GatedTeacher()
        async with watched(teacher) as (server, channel):
            handle = await create_async(channel)
            call = channel.unary_unary(path("EstimateGradient"))(
                estimate_request([handle]).SerializeToString()
            )
            await asyncio.to_thread(teacher.entered.wait, 10)
            draining = asyncio.create_task(server.drain())
            await asyncio.sleep(0.1)
            address = server.observability.metrics_address
            assert (await fetch(address, "/livez"))[0] == 200
            assert (await fetch(address, "/readyz"))[::2] == (503, "draining\n")
            text = (await fetch(address, "/metrics"))[2]
            assert "carv_draining 1.0" in text and "carv_ready 0.0" in text
            teacher.gate.set()
            await call
            await draining

    asyncio.run(main())


def test_without_an_address_there_is_no_port() -> None:
    async def main() -> None:
        config = ServerConfig(address="127.0.0.1:0", warm_up=False)
        async with RunningServer(config, {"mixture": oracle_teacher()}) as server:
            assert server.observability.metrics_address == ""

    asyncio.run(main())
