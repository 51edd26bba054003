"""A line for every request that fails, and at debug for every one; so many a second at most."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

from carv_server.observability.labels import CODES

__all__ = ["AccessLog"]

_log = logging.getLogger("carv_server.access")

_MOST_LINES_A_SECOND = 20.0
_BURST = 100.0
_MOST_FIELDS = 8
# Paths of the contract's fields; not what clients put between brackets.
_FIELD = re.compile(r"[a-z][a-z0-9_.]*(?:\[\d+\][a-z0-9_.]*)*")
_FAULTS_OF_THE_SERVER = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
_OF_ITS_STATE = frozenset({"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"})


class AccessLog:
    """Args:
    clock: monotonic seconds.

    Attributes:
        suppressed: lines over the limit so far.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._filled = clock()
        self._tokens = _BURST
        self.suppressed = 0

    @property
    def every_request(self) -> bool:
        """Whether those that end well have a line too."""
        return _log.isEnabledFor(logging.DEBUG)

    def ended(
        self, method: str, code: int, reason: str, seconds: float, fields: Sequence[str] = ()
    ) -> None:
        """A request has ended, in its own task.

        Args:
            reason: of the catalogue, or "".
            fields: those at fault.
        """
        name = CODES[code]
        level = logging.DEBUG if code == 0 else logging.INFO
        if name in _FAULTS_OF_THE_SERVER:
            level = logging.ERROR
        elif name in _OF_ITS_STATE:
            level = logging.WARNING
        if not _log.isEnabledFor(level):
            return
        if not self._take():
            self.suppressed += 1
            return
        named = [field for field in fields[:_MOST_FIELDS] if _FIELD.fullmatch(field)]
        said = "".join(f" {word}" for word in (reason, ", ".join(named)) if word)
        extra: dict[str, object] = {"method": method, "code": name, "seconds": round(seconds, 6)}
        if reason:
            extra["reason"] = reason
        if named:
            extra["violations"] = named
        _log.log(level, "%s %s%s after %.6f s", method, name, said, seconds, extra=extra)

    def _take(self) -> bool:
        now = self._clock()
        refill = (now - self._filled) * _MOST_LINES_A_SECOND
        self._filled = now
        self._tokens = min(_BURST, self._tokens + refill)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
