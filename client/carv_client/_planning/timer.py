"""Seconds that a client spends upstream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["UpstreamTimer"]


class UpstreamTimer:
    """Seconds of upstream work in each step, from blocks of code that the caller marks.

    Time is that of the union of all blocks, nested ones and those of several threads alike,
    less the waits inside. A block that ends by an exception leaves the time of its step unknown.

    Where no block was ever marked, a step's time is that between the last reply and the next
    request, as long as nothing else is in flight.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._depth = 0
        self._waits = 0
        self._start = 0.0
        self._seconds = 0.0
        self._broken = False
        self._marked = False
        self._flushed = self._begun = self._steady = False
        self._in_flight = 0
        self._replied: float | None = None
        self._gap: float | None = None

    @contextmanager
    def block(self) -> Generator[None]:
        """Time what is inside."""
        with self._lock:
            self._marked = True
            self._settle()
            self._depth += 1
        broken = True
        try:
            yield
            broken = False
        finally:
            with self._lock:
                self._settle()
                self._depth -= 1
                self._broken |= broken

    @contextmanager
    def wait(self) -> Generator[None]:
        """A request: what passes inside is not upstream work."""
        with self._lock:
            self._settle()
            now = self._clock()
            alone = self._in_flight == 0 and self._replied is not None
            self._gap = now - self._replied if alone and self._replied is not None else None
            self._in_flight += 1
            self._waits += 1
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._in_flight -= 1
                self._waits -= 1
                self._replied = self._clock()

    def flush(self) -> float | None:
        """Seconds since the last flush, at the end of a step; None where they are not known.

        The first step with marked blocks is left out, its backward pass may be yet to come; and
        those without any that follow, which belong to it where many requests are in flight.
        """
        with self._lock:
            self._settle()
            seconds, broken = self._seconds, self._broken
            self._seconds, self._broken = 0.0, False
            gap, self._gap = self._gap, None
            if not self._marked:
                return gap
            first, self._flushed = not self._flushed, True
            if not self._steady and (first or self._begun or seconds > 0):
                self._steady = self._begun and seconds > 0
                self._begun |= seconds > 0
                if not self._steady:
                    return None
            return None if broken else seconds

    def _settle(self) -> None:
        """Take in the time since the last change of state."""
        now = self._clock()
        if self._depth > 0 and self._waits == 0:
            self._seconds += now - self._start
        self._start = now
