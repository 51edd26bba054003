"""Seeds for requests that bring none."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

__all__ = ["Seeds"]

_MOST_ISSUED = 1024


class Seeds:
    """Fresh seeds, of which the next can be known ahead. Safe to use from several threads.

    Args:
        draw: a seed, uniform on 0 .. 2^64 - 1, independent of all others.
    """

    def __init__(self, draw: Callable[[], int]) -> None:
        self._draw = draw
        self._next: deque[int] = deque()
        self._issued: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    def take(self) -> int:
        """A seed that no request has."""
        with self._lock:
            seed = self._next.popleft() if self._next else self._draw()
            self._issued[seed] = None
            if len(self._issued) > _MOST_ISSUED:
                self._issued.popitem(last=False)
            return seed

    def came_from_here(self, seed: int) -> bool:
        """Whether it is one of the last that were taken."""
        with self._lock:
            return seed in self._issued

    def ahead(self, count: int) -> list[int]:
        """The seeds that will be taken next, in order."""
        with self._lock:
            while len(self._next) < count:
                self._next.append(self._draw())
            return [self._next[i] for i in range(count)]
