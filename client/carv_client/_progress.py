"""Progress of a call: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["ProgressBar", "bar"]

_WIDTH = 30
_LINE_SHARE = 0.25  # elsewhere than on a terminal: one line for each such share
_EIGHTHS = " ▏▎▍▌▋▊▉"


class ProgressBar:
    """Shows a share of work done; a context manager that clears the bar at the end.

    Args:
        label: what is going on.
        stream: where to; standard error by default.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = time.monotonic()
        self._told = 0.0

    def __call__(self, share: float) -> None:
        """``share``: 0 .. 1."""
        elapsed = time.monotonic() - self._start
        if self._terminal:
            left = f", {elapsed / share - elapsed:.0f} s left" if 0 < share < 1 else ""
            filled = bar(share, _WIDTH, self._stream)
            self._write(f"\r{self._label} |{filled}| {share:4.0%}  {elapsed:.0f} s{left}\x1b[K")
        elif share >= min(self._told + _LINE_SHARE, 1.0) > self._told:
            self._told = share
            self._write(f"{self._label}: {share:.0%}, {elapsed:.1f} s\n")

    def __enter__(self) -> ProgressBar:
        if self._terminal:
            self(0.0)
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal:
            self._write("\r\x1b[K")

    def _write(self, line: str) -> None:
        self._stream.write(line)
        self._stream.flush()


def bar(share: float, width: int, stream: TextIO) -> str:
    """A bar that fills a share of ``width`` characters, padded to it; of block characters where
    the stream's encoding has them, else of number signs."""
    share = min(max(share, 0.0), 1.0)
    try:
        f"█{_EIGHTHS}".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ("#" * round(share * width)).ljust(width)
    whole, part = divmod(round(share * width * 8), 8)
    return ("█" * whole + (_EIGHTHS[part] if part else "")).ljust(width)
