"""Rows that a teacher is given at once, and less of them once the device has run out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

__all__ = ["RowLimit", "is_out_of_memory"]

_log = logging.getLogger(__name__)


class RowLimit:
    """Cuts a forward's rows into pieces, and pieces that do not fit into halves.

    A lower limit is remembered only once all rows have gone through under it: rows that fail by
    themselves lower nothing for the others.

    Args:
        most: rows at once; None is all of them.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most

    @property
    def most(self) -> int | None:
        return self._most

    def run(self, forward: Callable[[slice], torch.Tensor], rows: int) -> torch.Tensor:
        """``forward`` of rows 0 .. ``rows``, in pieces, joined along the first axis.

        Raises:
            Exception: what ``forward`` raised; out of memory only where a single row was.
        """
        first = step = min(rows, self._most or rows)
        pieces: list[torch.Tensor] = []
        start = 0
        while start < rows:
            piece = slice(start, min(start + step, rows))
            try:
                pieces.append(forward(piece))
            except Exception as error:
                size = piece.stop - piece.start
                if size == 1 or not is_out_of_memory(error):
                    raise
                step = size // 2
            else:
                start = piece.stop
                continue
            # Outside the handler: the error's trace holds the failed forward's tensors.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if step < first:
            self._most = step
            _log.warning("out of memory at more than %d rows; no more at once from now on", step)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer rows may help: CUDA's allocator, torch's on the CPU, numpy's or Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )
