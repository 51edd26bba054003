"""What was done in the last minute, from totals that are read every few seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

__all__ = ["READ_EVERY_SECONDS", "Rates"]

_KEPT = 13
READ_EVERY_SECONDS = 5.0


class Rates:
    """Totals by name, now and up to a minute ago.

    Args:
        read: totals now; they only grow.
        clock: monotonic seconds.
    """

    def __init__(self, read: Callable[[], Mapping[str, float]], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._readings: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=_KEPT)

    def take(self) -> None:
        self._readings.append((self._clock(), self._read()))

    def grown(self) -> tuple[float, dict[str, float]]:
        """Seconds that are looked back over, and by how much each total grew in them; 0 seconds
        before the first reading."""
        now = self._read()
        if not self._readings:
            return 0.0, {}
        then, before = self._readings[0]
        grown = {name: total - before.get(name, 0.0) for name, total in now.items()}
        return self._clock() - then, grown
