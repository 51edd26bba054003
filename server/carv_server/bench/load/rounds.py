"""Numbers over interleaved rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from carv_server.bench.cells import Measured

__all__ = ["over_rounds"]


def over_rounds(values: Sequence[float]) -> Measured:
    """Mean and standard error over rounds; the error of one round alone is not known (NaN)."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Measured(math.nan, math.nan)
    if len(finite) == 1:
        return Measured(finite[0], math.nan)
    return Measured(float(np.mean(finite)), float(np.std(finite, ddof=1)) / math.sqrt(len(finite)))
