"""What past draws say about the integrand: running moments over bins of log-SNR.

The residual h = sum_j a_j(t) eps_hat + d(t) eps is what a draw costs; f = w h. Its moments

    m2(t) = E ||h||^2,    s(t) = E <h, eps> / E ||eps||^2

change smoothly with log-SNR and slowly along an optimisation, so a few dozen bins with an
exponential discount describe them. Weighting and prior are known functions and stay out of the
record: clients anneal them without losing what was learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from carv_server.sampling.schedule import Schedule, bounded_log_snr

__all__ = ["BINS", "DrawStatistics", "Past", "empty_statistics", "past_on_grid", "record_draws"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

BINS = 32
_BANDWIDTH = 1.5  # of the smoothing over bins, in bins
_SMOOTH_DRAWS = 4.0  # a bin's own mean counts as its draws against so many of its neighbourhood
_FLAT_DRAWS = 1.0  # and the neighbourhood's against so many of the mean over all bins


@dataclass(frozen=True)
class DrawStatistics:
    """Discounted sums over past draws by bin, each float64 [BINS].

    Attributes:
        draws: number of draws.
        squared_norms: sum of ||h||^2.
        noise_products: sum of <h, eps>.
        noise_norms: sum of ||eps||^2.
    """

    draws: Float64Array
    squared_norms: Float64Array
    noise_products: Float64Array
    noise_norms: Float64Array


@dataclass(frozen=True)
class Past:
    """Moments of the residual on the teacher's grid, as past draws have them.

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


def empty_statistics() -> DrawStatistics:
    """No draws yet."""
    return DrawStatistics(*(np.zeros(BINS) for _ in range(4)))


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
    bins = _bin_of_timestep(schedule)[timesteps]
    keep = math.exp(-len(timesteps) / memory)

    def added(sums: Float64Array, values: Float64Array | None) -> Float64Array:
        return keep * sums + np.bincount(bins, values, minlength=BINS)

    return DrawStatistics(
        draws=added(past.draws, None),
        squared_norms=added(past.squared_norms, residuals[:, 0]),
        noise_products=added(past.noise_products, residuals[:, 1]),
        noise_norms=added(past.noise_norms, residuals[:, 2]),
    )


def past_on_grid(statistics: DrawStatistics, schedule: Schedule) -> Past | None:
    """Smoothed over bins and interpolated in log-SNR; None where nothing was recorded.

    Where no draw fell near, ||h|| is taken for flat.
    """
    total = float(statistics.draws.sum())
    if not total > 0 or not statistics.squared_norms.sum() > 0:
        return None
    second = _smoothed(statistics.squared_norms, statistics.draws)
    noise = _smoothed(statistics.noise_norms, statistics.draws)
    product = _smoothed(statistics.noise_products, statistics.draws)
    slope = product / np.where(noise > 0, noise, 1.0)
    # Cauchy-Schwarz holds for the sums of each bin, and smoothing keeps it: never below zero
    # but by rounding.
    controlled = np.maximum(second - slope * product, 0.0)
    position = _bin_position(schedule)
    nodes = np.arange(BINS, dtype=np.float64)

    def on_grid(values: Float64Array) -> Float64Array:
        return np.interp(position, nodes, values)

    return Past(
        draws=total,
        root_second_moment=on_grid(np.sqrt(second)),
        noise_slope=on_grid(slope),
        root_controlled_moment=on_grid(np.sqrt(controlled)),
    )


def _smoothed(sums: Float64Array, draws: Float64Array) -> Float64Array:
    """Mean by bin, shrunk to that of its neighbourhood, and that to the mean of all."""
    kernel = _kernel()
    overall = sums.sum() / draws.sum()
    near = (kernel @ sums + _FLAT_DRAWS * overall) / (kernel @ draws + _FLAT_DRAWS)
    return (sums + _SMOOTH_DRAWS * near) / (draws + _SMOOTH_DRAWS)


@cache
def _kernel() -> Float64Array:
    bins = np.arange(BINS)
    return np.exp(-0.5 * ((bins[:, None] - bins) / _BANDWIDTH) ** 2)


def _bin_position(schedule: Schedule) -> Float64Array:
    """Where each timestep lies among the bins' centres, float64 [N]; bins are of equal width
    over the schedule's range of log-SNR."""
    log_snr = bounded_log_snr(schedule.log_snr)
    low, high = float(log_snr.min()), float(log_snr.max())
    width = (high - low) / BINS or 1.0
    return (log_snr - low) / width - 0.5


def _bin_of_timestep(schedule: Schedule) -> Int64Array:
    """Bin of each timestep, int64 [N]."""
    rounded = np.rint(_bin_position(schedule)).astype(np.int64)
    return np.clip(rounded, 0, BINS - 1)
