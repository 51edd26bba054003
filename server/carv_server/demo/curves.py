"""Scores of several runs on one axis of compute, and how they compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Band", "band", "compute_to_reach"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """A score against compute over seeds."""

    compute: FloatArray
    """``[P]`` seconds, common to all seeds."""
    mean: FloatArray
    """``[P]`` over seeds."""
    low: FloatArray
    """``[P]`` least over seeds."""
    high: FloatArray
    """``[P]`` greatest over seeds."""


def band(compute: Sequence[Sequence[float]], scores: Sequence[Sequence[float]], end: float) -> Band:
    """Mean, least and greatest of runs whose points do not fall on the same seconds.

    Each run is interpolated linearly onto the mean positions of its points, cut at ``end``; all
    runs must have the same number of points, and reach ``end``.
    """
    seconds = np.asarray(compute, dtype=np.float64)
    if seconds[:, -1].min() < end:
        raise ValueError(f"a run ends at {seconds[:, -1].min()} s, before {end} s")
    axis = np.minimum(seconds.mean(axis=0), end)
    values: FloatArray = np.empty_like(seconds)
    for row, (own, score) in enumerate(zip(seconds, scores, strict=True)):
        values[row] = np.interp(axis, own, np.asarray(score, dtype=np.float64))
    return Band(axis, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def compute_to_reach(curve: Band, level: float) -> float | None:
    """First seconds at which the mean reaches ``level``; None where it never does."""
    above = np.flatnonzero(curve.mean >= level)
    if not len(above):
        return None
    end = int(above[0])
    if end == 0:
        return float(curve.compute[0])
    rise = curve.mean[end] - curve.mean[end - 1]
    part = (level - curve.mean[end - 1]) / rise
    return float(curve.compute[end - 1] + part * (curve.compute[end] - curve.compute[end - 1]))
