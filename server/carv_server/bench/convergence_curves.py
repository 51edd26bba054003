"""Curves of runs over compute, and what one method saves against another.

A curve is the mean of runs interpolated to common seconds of compute; its band is one standard
error over runs. The saving is the share of the compute from which on CARV's mean stays above the
baseline's last mean, with an interval by bootstrap over seeds within prompts. It says something
only where the baseline still rises: ``settled`` is the share from which on the baseline's own
mean is within two standard errors of its last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carv_server.demo.settings import BASELINE, CARV

__all__ = ["Curve", "Trace", "common_end", "pooled", "saving", "saving_interval", "settled"]

FloatArray = npt.NDArray[np.float64]
_BOOTSTRAPS = 1000
_SETTLED_ERRORS = 2.0


@dataclass(frozen=True)
class Trace:
    """One run: its scores at seconds of compute, ``[P]`` each."""

    prompt: str
    method: str
    seed: int
    compute: Sequence[float]
    scores: Mapping[str, Sequence[float]]
    iterations: int


@dataclass(frozen=True)
class Curve:
    """Mean over runs and its standard error at seconds of compute, each ``[P]``."""

    compute: FloatArray
    mean: FloatArray
    error: FloatArray


def pooled(traces: Sequence[Trace], method: str, score: str, end: float) -> Curve:
    """Mean over the runs of a method.

    Args:
        end: seconds that every run has spent; the curve ends there.
    """
    chosen = [trace for trace in traces if trace.method == method]
    axis = np.minimum(np.mean([trace.compute for trace in chosen], axis=0), end)
    values: FloatArray = np.empty((len(chosen), len(axis)))
    for row, trace in zip(values, chosen, strict=True):
        row[:] = np.interp(axis, trace.compute, trace.scores[score])
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * axis
    return Curve(axis, values.mean(axis=0), error)


def common_end(traces: Sequence[Trace]) -> float:
    """Seconds that every run has spent."""
    return min(trace.compute[-1] for trace in traces)


def saving(traces: Sequence[Trace], score: str) -> float:
    """Share of the compute from which on CARV's mean stays above the baseline's last; infinite
    where it ends below."""
    end = common_end(traces)
    level = float(pooled(traces, BASELINE.name, score, end).mean[-1])
    return _stays_above(pooled(traces, CARV.name, score, end), level) / end


def saving_interval(
    traces: Sequence[Trace], score: str, rng: np.random.Generator
) -> tuple[float, float]:
    """Bootstrap over seeds within prompts: the 5 and 95 % quantiles of the saving."""
    found: list[float] = []
    cells: dict[tuple[str, int], list[Trace]] = {}
    for trace in traces:
        cells.setdefault((trace.prompt, trace.seed), []).append(trace)
    prompts = sorted({prompt for prompt, _ in cells})
    seeds = sorted({seed for _, seed in cells})
    for _ in range(_BOOTSTRAPS):
        sample = [
            trace
            for prompt in prompts
            for seed in rng.choice(seeds, len(seeds))
            for trace in cells[prompt, int(seed)]
        ]
        found.append(saving(sample, score))
    low, high = np.quantile(found, [0.05, 0.95], method="nearest")
    return float(low), float(high)


def settled(traces: Sequence[Trace], score: str) -> float:
    """Share of the compute from which on the baseline's own mean is within two standard errors of
    its last."""
    end = common_end(traces)
    curve = pooled(traces, BASELINE.name, score, end)
    level = curve.mean[-1] - _SETTLED_ERRORS * curve.error[-1]
    return _stays_above(curve, float(level)) / end


def _stays_above(curve: Curve, level: float) -> float:
    """Seconds from which on the mean is at least the level, linear between looks; infinite where
    it ends below."""
    below = np.flatnonzero(curve.mean < level)
    if not len(below):
        return float(curve.compute[0])
    last = int(below[-1]) + 1
    if last == len(curve.mean):
        return float("inf")
    x, y = curve.compute[last - 1 : last + 1], curve.mean[last - 1 : last + 1]
    return float(x[0] + (level - y[0]) / (y[1] - y[0]) * (x[1] - x[0]))
