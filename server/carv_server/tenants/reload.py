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
    file may be written twice within the resolution of its time.

    Args:
        what: the files stand for, in the log.
        files: looked at.
        present: what is in force.
        read: makes something of the files, in a thread; raises ValueError or OSError where they
            are no good, and then what is in force stays.
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
        self._wrong: Exception | None = None

    async def run(self, seconds: float) -> None:
        """Look every so many seconds, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(seconds)

    async def look(self) -> None:
        """Read the files if they have changed. What is still wrong with them at the next look is
        logged, once; what was being written is not."""
        content = await asyncio.to_thread(self._content)
        if content == self._seen:
            if self._wrong is not None:
                _log.error(
                    "%s: kept as they were, since the new are no good: %s", self._what, self._wrong
                )
                self._wrong = None
            return
        # What changes while it is read is seen at the next look.
        self._seen, self._wrong = content, None
        try:
            found = await asyncio.to_thread(self._read)
        except (ValueError, OSError) as error:
            self._wrong = error
            return
        if found != self._present:
            self._present = found
            self._take(found)
            _log.info("%s: taken anew", self._what)

    def _content(self) -> bytes:
        total = hashlib.sha256()
        for file in self._files:
            try:
                content = file.read_bytes()
            except OSError:
                content = b"\0unreadable"
            total.update(hashlib.sha256(content).digest())
        return total.digest()
