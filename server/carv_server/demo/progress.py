"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

__all__ = ["Progress"]

_LINE_SECONDS = 10.0


class Progress:
    """Work in seconds, as expected beforehand; stages name what is going on."""

    def __init__(self, total: float) -> None:
        """``total``: seconds of work that the ``advance`` calls will add up to."""
        self._total = total
        self._done = 0.0
        self._stage = ""
        self._printed = 0.0
        self._start = time.monotonic()
        self._bar: tqdm[NoReturn] | None = None
        if sys.stderr.isatty():
            layout = "{desc:34} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=total, bar_format=layout, leave=False)

    def stage(self, name: str) -> None:
        """Says what is going on from here."""
        self._stage = name
        if self._bar is not None:
            self._bar.set_description_str(name)
        else:
            self._line()

    def advance(self, seconds: float) -> None:
        """Books work done."""
        self._done = min(self._total, self._done + seconds)
        if self._bar is not None:
            self._bar.n = self._done
            self._bar.refresh()
        elif time.monotonic() - self._printed > _LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        share = 100 * self._done / self._total
        elapsed = self._printed - self._start
        print(f"[{elapsed:5.0f} s, {share:3.0f} %] {self._stage}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
