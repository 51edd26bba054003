"""Files that are read again as their content changes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["Watcher"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Watcher(Generic[T]):
    """Takes what a reader makes of some small files, whenever that is sound and new.

    Content is compared, and not times alone: a mounted secret is a link that is set anew, and a
    file may be written twice within the resolution of its time. What two looks in a row do not
    find alike is still being written, and is left alone: half of a file may be sound too.

    Args:
        what: the files stand for, in the log.
        files: looked at.
        present: what is in force.
        read: makes something of the files, in a thread; where it raises, what is in force stays.
        take: puts it in force, on the event loop.
    """

    def __init__(
        self,
        what: str,
        files: Sequence[Path],
        present: T,
        read: Callable[[], T],
        take: Callable[[T], None],
    ) -> None:
        self._what = what
        self._files = tuple(files)
        self._present = present
        self._read = read
        self._take = take
        self._seen = b""
        self._judged = b""

    async def run(self, seconds: float) -> None:
        """Look, for ever, so often that a change is taken within so many seconds."""
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - the next look may do better; without it all would end
                _log.exception("%s: could not be looked at", self._what)
            await asyncio.sleep(seconds / 2)

    async def look(self) -> None:
        """Read the files if they have changed and have not since the last look. What is wrong with
        them is logged, once."""
        content = await asyncio.to_thread(self._content)
        steady, self._seen = content == self._seen, content
        if not steady or content == self._judged:
            return
        try:
            found = await asyncio.to_thread(self._read)
            if not await self._holds(content):
                return  # something else was read than was looked at
            self._judged = content
            if found != self._present:
                self._take(found)
                self._present = found
                _log.info("%s: taken anew", self._what)
        except Exception as error:  # noqa: BLE001 - whatever a file holds, the old stays in force
            if await self._holds(content):
                self._judged = content
                _log.error(
                    "%s: kept as they were, since the new are no good: %s", self._what, _told(error)
                )

    async def _holds(self, content: bytes) -> bool:
        return await asyncio.to_thread(self._content) == content

    def _content(self) -> bytes:
        total = hashlib.sha256()
        for file in self._files:
            try:
                content = file.read_bytes()
            except OSError:
                content = b"\0unreadable"
            total.update(hashlib.sha256(content).digest())
        return total.digest()


def _told(error: Exception) -> str:
    """What is expected of bad files says enough by itself."""
    return str(error) if isinstance(error, ValueError | OSError) else repr(error)
