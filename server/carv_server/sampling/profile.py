"""A profile of the integrand over log-SNR: what each bin of timesteps adds to the variance.

In every bin and render, n antithetic pairs f(t_j, eps_j), f(t_j, -eps_j) with t_j drawn from the
prior within the bin. A pair shares its t, so e_j = (f(t_j, eps_j) + f(t_j, -eps_j)) / 2 is exactly
the part of f that is even in eps, and pairs are independent and identically distributed. So, with
mean m of the e_j and s^2 = sum_j ||e_j - m||^2 / (n - 1), these are unbiased:

    E ||f||^2         mean of ||f||^2 over draws
    E ||e||^2         mean of ||e_j||^2
    ||E f||^2         ||m||^2 - s^2 / n
    ||g||^2           ||sum_b p_b m_b||^2 - sum_b p_b^2 s_b^2 / n, bins being independent
    tr Cov of a draw from q with its weight p/q    sum_t p^2/q E ||f||^2 - ||g||^2
                                                   (arXiv 2605.21489, Eq. 3)

What is unbiased for a square may come out below zero where the square is small; it is not clipped.
Where n is 1 nothing tells s^2, and what needs it is NaN.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import PROFILE_STREAMS, DrawPlan
from carv_server.sampling.proposals import (
    cumulative,
    inverse_cdf,
    proportional_table,
    weight_table,
)
from carv_server.sampling.schedule import bounded_log_snr
from carv_server.sampling.timesteps import TimestepSampler, place_points

__all__ = [
    "BinDraws",
    "BinMoments",
    "Profile",
    "TimestepBin",
    "bin_moments",
    "plan_bin",
    "profile_from_moments",
    "timestep_bins",
]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_STREAM_INDICES = 1 << 20


@dataclass(frozen=True)
class TimestepBin:
    """Neighbouring timesteps of the prior's support.

    Attributes:
        first, last: timesteps of the grid, both included; the prior holds both.
        log_snr: mean under the prior, each value cut to +-12.
        mass: share of the prior, above zero.
    """

    first: int
    last: int
    log_snr: float
    mass: float

    def table(self, prior: Float64Array) -> Float64Array:
        """The prior within the bin, float64 [N], zero elsewhere; not normalised."""
        inside = np.zeros_like(prior)
        inside[self.first : self.last + 1] = prior[self.first : self.last + 1]
        return inside


def timestep_bins(log_snr: Float64Array, prior: Float64Array, bins: int) -> list[TimestepBin]:
    """Bins of equal width in log-SNR over the support of the prior, as far as the grid allows:
    every bin holds a timestep of the support, and every such timestep lies in one bin.

    Args:
        log_snr: float64 [N], falling with t; may be infinite.
        prior: float64 [N], sums to one.
        bins: most bins; there are fewer where the support has fewer timesteps.
    """
    support = np.flatnonzero(prior)
    count = min(bins, len(support))
    clipped = bounded_log_snr(log_snr)
    # Should a schedule not be monotone, bins still are neighbours in t.
    position = np.maximum.accumulate(-clipped[support])
    span = float(position[-1] - position[0])
    edges = [float(position[0]) + span * i / count for i in range(count + 1)]
    starts = [bisect.bisect_left(position, edge) for edge in edges]
    starts[count] = len(support)
    for i in range(1, count):  # at least one timestep each, from below and from above
        starts[i] = max(starts[i], starts[i - 1] + 1)
    for i in range(count - 1, 0, -1):
        starts[i] = min(starts[i], starts[i + 1] - 1)
    found: list[TimestepBin] = []
    for start, stop in pairwise(starts):
        members = support[start:stop]
        mass = float(prior[members].sum())
        mean = float(prior[members] / mass @ clipped[members])
        found.append(TimestepBin(int(members[0]), int(members[-1]), mean, mass))
    return found


def plan_bin(
    where: TimestepBin, index: int, prior: Float64Array, renders: int, draws: int, seed: int
) -> DrawPlan:
    """Antithetic pairs at timesteps of one bin, independent under the prior within it.

    Args:
        index: of the bin; bins share no draw.
        draws: of each render, even.
    """
    pairs, stream = draws // 2, PROFILE_STREAMS[index]
    points = place_points(TimestepSampler.IID, renders, pairs, seed, stream)
    timesteps = np.repeat(inverse_cdf(cumulative(where.table(prior)), points), 2, axis=1)
    pair = np.broadcast_to(np.repeat(np.arange(pairs), 2), timesteps.shape)
    return DrawPlan(
        timesteps=timesteps,
        noise_indices=stream * _STREAM_INDICES + pair,
        signs=np.broadcast_to(np.tile([1.0, -1.0], pairs), timesteps.shape),
        importance_weights=np.ones(timesteps.shape),
        control_coefficients=np.zeros(timesteps.shape),
        groups=pair,
        cells=pair,
        identically_distributed=True,
    )


@dataclass(frozen=True)
class BinDraws:
    """The evaluated pairs of one bin; R renders, n pairs, D elements of an event.

    Attributes:
        timesteps: int64 [R, n].
        squared_norms, noise_products, noise_norms: float64 [R, n], means over the two draws of a
            pair of ||h||^2, <h, eps> and ||eps||^2, where f = w h.
        mean: float64 [R, D], m.
        deviation: float64 [R], sum_j ||e_j - m||^2.
    """

    timesteps: Int64Array
    squared_norms: Float64Array
    noise_products: Float64Array
    noise_norms: Float64Array
    mean: Float64Array
    deviation: Float64Array


@dataclass(frozen=True)
class BinMoments:
    """One bin's estimates, means over renders.

    Attributes:
        second_moment, second_moment_error: E ||f||^2 and its standard error.
        squared_mean: ||E f||^2.
        even_second_moment: E ||e||^2.
        noise_slope: E <h, eps> / E ||eps||^2.
        residual_moment: E ||h||^2.
        mean_variance: s^2 / n, the variance of m.
        timesteps, squares: int64 and float64 [R, n]: each pair's t and mean ||f||^2.
    """

    second_moment: float
    second_moment_error: float
    squared_mean: float
    even_second_moment: float
    noise_slope: float
    residual_moment: float
    mean_variance: float
    timesteps: Int64Array
    squares: Float64Array


def bin_moments(draws: BinDraws, objective: ObjectiveTables) -> BinMoments:
    """The estimates of one bin from its draws, as in the module's docstring."""
    renders, pairs = draws.timesteps.shape
    squares = objective.weighting[draws.timesteps] ** 2 * draws.squared_norms
    mean_squares: Float64Array = np.sum(draws.mean**2, axis=1)
    if pairs > 1:
        variance_of_mean = draws.deviation / (pairs * (pairs - 1))
        means: Float64Array = np.mean(squares, axis=1)
        spread = float(np.sum((squares - means[:, None]) ** 2)) / (pairs - 1)
        error = math.sqrt(spread / pairs) / renders
    else:
        variance_of_mean = np.full(renders, np.nan)
        error = math.nan
    noise = float(draws.noise_norms.sum())
    return BinMoments(
        second_moment=float(squares.mean()),
        second_moment_error=error,
        squared_mean=float(mean_squares.mean()) - float(variance_of_mean.mean()),
        even_second_moment=float((mean_squares + draws.deviation / pairs).mean()),
        noise_slope=float(draws.noise_products.sum()) / noise if noise > 0 else 0.0,
        residual_moment=float(draws.squared_norms.mean()),
        mean_variance=float(variance_of_mean.mean()),
        timesteps=draws.timesteps,
        squares=squares,
    )


@dataclass(frozen=True)
class Profile:
    """All bins, and what follows from them, means over renders.

    Attributes:
        weight, oracle: proposals, float64 [N]; the oracle is q proportional to p |w| sqrt(m2)
            with m2 = E ||h||^2 from the bins, its root linear in t between their middles.
        prior_variance, weight_variance, oracle_variance: tr Cov of one iid draw, weight p/q
            included. The oracle's is judged on the draws that it was made from: a little low, by
            about a quarter of the squared relative error of the bins' second moments.
        squared_gradient: ||g||^2.
    """

    bins: Sequence[TimestepBin]
    moments: Sequence[BinMoments]
    weight: Float64Array
    oracle: Float64Array
    prior_variance: float
    weight_variance: float
    oracle_variance: float
    squared_gradient: float


def profile_from_moments(
    bins: Sequence[TimestepBin],
    moments: Sequence[BinMoments],
    gradient: Float64Array,
    objective: ObjectiveTables,
) -> Profile:
    """Put the bins together.

    Args:
        gradient: float64 [R, D], sum_b p_b m_b.
        objective: its weighting is not zero wherever the prior is not.
    """
    prior = objective.prior
    weight = weight_table(objective)
    assert weight is not None
    middles = [(each.first + each.last) / 2 for each in bins]
    root = np.sqrt([each.residual_moment for each in moments])
    # Where h was zero at every draw any proposal will do.
    oracle = proportional_table(objective, np.interp(np.arange(len(prior)), middles, root))
    oracle = weight if oracle is None else oracle
    mass = np.array([each.mass for each in bins])
    noise_in_square = float(mass**2 @ np.array([each.mean_variance for each in moments]))
    squared_gradient = float((gradient**2).sum()) / len(gradient) - noise_in_square

    def variance(proposal: Float64Array) -> float:
        second = 0.0
        for where, each in zip(bins, moments, strict=True):
            used = each.squares > 0  # q may vanish where w does
            t = each.timesteps[used]
            weighted = prior[t] / proposal[t] * each.squares[used]
            second += where.mass * float(weighted.sum()) / each.squares.size
        return second - squared_gradient

    return Profile(
        bins=bins,
        moments=moments,
        weight=weight,
        oracle=oracle,
        prior_variance=variance(prior),
        weight_variance=variance(weight),
        oracle_variance=variance(oracle),
        squared_gradient=squared_gradient,
    )
