"""What past draws say about the integrand: running moments over bins of log-SNR.

The residual h = sum_j a_j(t) eps_hat + d(t) eps is what a draw costs; f = w h. Its moments

    m2(t) = E ||h||^2,    s(t) = E <h, eps> / E ||eps||^2

change smoothly with log-SNR and slowly along an optimisation, so a few dozen bins with an
exponential discount describe them. Weighting and prior are known functions and stay out of the
record: clients anneal them without losing what was learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from carv_server.sampling.schedule import Schedule, bounded_log_snr

__all__ = [
    "BINS",
    "DrawStatistics",
    "Past",
    "bin_of_timesteps",
    "empty_statistics",
    "past_on_grid",
    "record_batches",
    "record_draws",
]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

BINS = 32
_BANDWIDTH = 1.5  # of the smoothing over bins, in bins
_SMOOTH_DRAWS = 4.0  # a bin's own mean counts as its draws against so many of its neighbourhood
_FLAT_DRAWS = 1.0  # and the neighbourhood's against so many of the mean over all bins


@dataclass(frozen=True)
class DrawStatistics:
    """Discounted sums over past draws by bin.

    Attributes:
        sums: float64 [4, BINS]: number of draws, and their sums of ||h||^2, <h, eps> and
            ||eps||^2.
    """

    sums: Float64Array

    @cached_property
    def draws(self) -> float:
        """Discounted number of all draws."""
        return float(self.sums[0].sum())


@dataclass(frozen=True, eq=False)
class Past:
    """Moments of the residual on the teacher's grid, as past draws have them. Equal to itself
    alone, so that what is derived from it may be cached by it.

    Attributes:
        draws: discounted number of draws behind it, above zero.
        root_second_moment: float64 [N], sqrt(m2(t)).
        noise_slope: float64 [N], s(t).
        root_controlled_moment: float64 [N], sqrt(E ||h - s eps||^2).
    """

    draws: float
    root_second_moment: Float64Array
    noise_slope: Float64Array
    root_controlled_moment: Float64Array


def bin_of_timesteps(schedule: Schedule) -> Int64Array:
    """Which bin draws of each timestep are counted in, int64 [N]."""
    return _grid(schedule).slots[0]


def empty_statistics() -> DrawStatistics:
    """No draws yet."""
    return DrawStatistics(np.zeros((4, BINS)))


def record_draws(
    past: DrawStatistics,
    schedule: Schedule,
    timesteps: Int64Array,
    residuals: Float64Array,
    memory: float,
) -> DrawStatistics:
    """The statistics after n more draws; older ones are discounted by exp(-n / memory).

    Args:
        timesteps: int64 [n].
        residuals: float64 [n, 3]: ||h||^2, <h, eps> and ||eps||^2 of each draw.
    """
    return record_batches(past, schedule, [(timesteps, residuals)], memory)


def record_batches(
    past: DrawStatistics,
    schedule: Schedule,
    batches: Sequence[tuple[Int64Array, Float64Array]],
    memory: float,
) -> DrawStatistics:
    """``record_draws`` of one batch after the other, at once."""
    sizes = [len(timesteps) for timesteps, _ in batches]
    timesteps = np.concatenate([timesteps for timesteps, _ in batches])
    values = np.ones((4, len(timesteps)))
    values[1:] = np.concatenate([residuals for _, residuals in batches]).T
    later = sum(sizes)
    keep = math.exp(-later / memory)
    if len(batches) > 1:
        # A batch is discounted by those after it.
        discounts: list[float] = []
        for size in sizes:
            later -= size
            discounts += [math.exp(-later / memory)] * size
        values *= discounts
    slots = _grid(schedule).slots[:, timesteps]
    added = np.bincount(slots.reshape(-1), values.reshape(-1), minlength=4 * BINS)
    return DrawStatistics(keep * past.sums + added.reshape(4, BINS))


def past_on_grid(statistics: DrawStatistics, schedule: Schedule) -> Past | None:
    """Smoothed over bins and interpolated in log-SNR; None where nothing was recorded.

    Where no draw fell near, ||h|| is taken for flat.
    """
    total, squared_norms, *_ = statistics.sums.sum(axis=1).tolist()
    if not total > 0 or not squared_norms > 0:
        return None
    second, product, noise = _smoothed(statistics.sums)
    slope = product / np.where(noise > 0, noise, 1.0)
    # Cauchy-Schwarz holds for the sums of each bin, and smoothing keeps it: never below zero
    # but by rounding.
    controlled = np.maximum(second - slope * product, 0.0)
    by_bin = np.stack([np.sqrt(second), slope, np.sqrt(controlled)])
    second_moment, noise_slope, controlled_moment = by_bin @ _grid(schedule).interpolation
    return Past(total, second_moment, noise_slope, controlled_moment)


def _smoothed(sums: Float64Array) -> Float64Array:
    """Means by bin of ||h||^2, <h, eps> and ||eps||^2, [3, BINS]: each shrunk to that of its
    neighbourhood, and that to the mean of all.

    Args:
        sums: of ``DrawStatistics``.
    """
    draws, values = sums[0], sums[1:]
    near = sums @ _kernel()  # symmetric
    overall = values.sum(axis=1, keepdims=True) / draws.sum()
    mean = (near[1:] + _FLAT_DRAWS * overall) / (near[0] + _FLAT_DRAWS)
    return (values + _SMOOTH_DRAWS * mean) / (draws + _SMOOTH_DRAWS)


@cache
def _kernel() -> Float64Array:
    bins = np.arange(BINS)
    return np.exp(-0.5 * ((bins[:, None] - bins) / _BANDWIDTH) ** 2)


class _Grid(NamedTuple):
    """A schedule's timesteps among the bins, which are of equal width over its log-SNR.

    Attributes:
        slots: int64 [4, N], where in the flattened ``DrawStatistics.sums`` a draw of each timestep
            counts.
        interpolation: float64 [BINS, N], linear from values at the bins' centres to each timestep.
    """

    slots: Int64Array
    interpolation: Float64Array


@lru_cache(maxsize=64)
def _grid(schedule: Schedule) -> _Grid:
    log_snr = bounded_log_snr(schedule.log_snr)
    low, high = float(log_snr.min()), float(log_snr.max())
    width = (high - low) / BINS or 1.0
    position = (log_snr - low) / width - 0.5
    bins = np.clip(np.rint(position).astype(np.int64), 0, BINS - 1)
    nodes = np.arange(BINS, dtype=np.float64)
    return _Grid(
        np.arange(4)[:, np.newaxis] * BINS + bins,
        np.stack([np.interp(position, nodes, one) for one in np.eye(BINS)]),
    )
