"""Numbers over interleaved rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from carv_server.bench.cells import Measured

__all__ = ["other_work", "over_rounds"]


def over_rounds(values: Sequence[float]) -> Measured:
    """Mean and standard error over rounds; the error of one round alone is not known (NaN)."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Measured(math.nan, math.nan)
    if len(finite) == 1:
        return Measured(finite[0], math.nan)
    return Measured(float(np.mean(finite)), float(np.std(finite, ddof=1)) / math.sqrt(len(finite)))


def other_work(cores: Sequence[float]) -> str:
    """In words, so that a reader can tell a run on a busy machine."""
    if not cores:
        return "Nothing was measured."
    return (
        f"Other work on the machine took {np.mean(cores):.2f} cores on average over the windows, "
        f"at most {max(cores):.2f}."
    )
