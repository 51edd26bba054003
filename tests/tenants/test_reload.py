"""When a watched file is taken: whole, sound and once, whatever else it held before."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from carv_server.tenants import reload
from carv_server.tenants.reload import Watcher


class Watched:
    """A file whose text is taken, and what was."""

    def __init__(self, folder: Path, read: Callable[[], str] | None = None) -> None:
        self.file = folder / "watched"
        self.file.write_text("old")
        self.taken: list[str] = []
        self.watcher = Watcher(
            "texts", [self.file], "old", read or self.file.read_text, self.taken.append
        )

    def look(self, times: int = 1) -> list[str]:
        """What was taken until then."""

        async def looking() -> None:
            for _ in range(times):
                await self.watcher.look()

        asyncio.run(looking())
        return self.taken


def test_half_of_a_file_is_not_taken(tmp_path: Path) -> None:
    """Half of a list of tenants may be sound, and would shut the others out. It is taken at the
    second look that finds it alike.

    Breaks with: content that is read at the first look that finds it changed.
    """
    watched = Watched(tmp_path)
    assert watched.look(3) == []
    watched.file.write_text("new, ")
    assert watched.look() == []
    watched.file.write_text("new, and whole")
    assert watched.look() == []
    assert watched.look() == ["new, and whole"]
    assert watched.look(3) == ["new, and whole"]


def test_what_changes_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    """What was read is then not what two looks found. Breaks with: no third look."""

    def read() -> str:
        content = watched.file.read_text()
        if content == "new":
            watched.file.write_text("newer")
            return watched.file.read_text()[:3]
        return content

    watched = Watched(tmp_path, read)
    watched.look(2)
    watched.file.write_text("new")
    assert watched.look(2) == []
    assert watched.look(2) == ["newer"]


@pytest.mark.parametrize("error", [ValueError, OSError, TypeError, OverflowError, RecursionError])
def test_whatever_a_reader_raises_the_watch_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    """Told once, and the next sound content is taken. Breaks with: an `except` for some errors."""

    def read() -> str:
        if watched.file.read_text() == "bad":
            raise error("of no use")
        return watched.file.read_text()

    watched = Watched(tmp_path, read)
    watched.look(2)
    with caplog.at_level(logging.ERROR, "carv_server"):
        watched.file.write_text("bad")
        assert watched.look(4) == []
        assert caplog.text.count("kept as they were") == 1 and "of no use" in caplog.text
        watched.file.write_text("good")
        assert watched.look(2) == ["good"]
        watched.file.write_text("bad")
        watched.look(2)
        assert caplog.text.count("kept as they were") == 2


def test_what_cannot_be_put_in_force_is_not_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    watched.watcher._take = lambda text: watched.taken.append(text[9])
    watched.file.write_text("short")
    with caplog.at_level(logging.INFO, "carv_server"):
        watched.look(2)
    assert "kept as they were" in caplog.text and "taken anew" not in caplog.text
    watched.file.write_text("long enough")
    assert watched.look(2) == ["g"]


def test_a_change_is_taken_within_the_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the pauses that `run` asks for, those since a change just behind a look make up the time
    at most; also after a look that failed. Breaks with: looks as far apart as the time; a loop
    without its `except`."""
    watched = Watched(tmp_path)
    honest, seconds = watched.watcher._content, 0.5
    pauses: list[float] = []

    def failing() -> bytes:
        watched.watcher._content = honest
        raise MemoryError

    async def sleep(delay: float) -> None:
        """Takes no time, and ends the watch once the change is taken."""
        if watched.taken or len(pauses) == 20:
            raise asyncio.CancelledError
        pauses.append(delay)
        if len(pauses) == 4:
            watched.file.write_text("new")

    async def scenario() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await watched.watcher.run(seconds)

    watched.watcher._content = failing
    fake = SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread)
    monkeypatch.setattr(reload, "asyncio", fake)
    asyncio.run(scenario())
    assert watched.taken == ["new"]
    assert sum(pauses[3:]) <= seconds
    assert "could not be looked at" in caplog.text
