"""Proposals q(t): laws that t is drawn from. They never change the estimand, since every draw
carries the importance weight p/q."""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from carv_server.sampling.objective import ObjectiveTables

__all__ = [
    "DEFENSIVE_SHARE",
    "Cumulative",
    "Proposal",
    "adaptive_table",
    "cumulative",
    "importance_weights",
    "inverse_cdf",
    "inverse_cdf_at",
    "proportional_table",
    "weight_table",
]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

DEFENSIVE_SHARE = 0.05
"""Least share of the prior in the adaptive proposal: p/q is at most its inverse."""
_TRUSTED_DRAWS = 32.0
"""Past draws at which the learned proposal and the prior have equal shares: what little is known
after a few draws is mostly the weighting, which can be much worse than the prior."""


class Proposal(Enum):
    PRIOR = "prior"
    WEIGHT = "weight"
    ADAPTIVE = "adaptive"


@lru_cache(maxsize=64)
def weight_table(objective: ObjectiveTables) -> Float64Array | None:
    """q proportional to p |w|, float64 [N]: the paper's heuristic (arXiv 2605.21489, Section 4).

    It can hurt where ||f|| does not follow w. Where w vanishes, so does the integrand, and q may
    be zero there without bias. None where w is zero wherever p is not.
    """
    return proportional_table(objective, np.ones_like(objective.prior))


def adaptive_table(
    objective: ObjectiveTables, root_moment: Float64Array, draws: float
) -> Float64Array | None:
    """q = (1 - delta) q_hat + delta p with q_hat proportional to p |w| root_moment, float64 [N].

    With root_moment = sqrt(E ||h||^2), f = w h, q_hat has the least second moment of all
    proposals; the share delta of p bounds p/q by 1/delta whatever root_moment is. It falls from 1
    without past draws to ``DEFENSIVE_SHARE``. None where the product vanishes.

    Args:
        root_moment: float64 [N], at least zero; fixed before the draws.
        draws: discounted number of past draws behind ``root_moment``.
    """
    best = proportional_table(objective, root_moment)
    if best is None:
        return None
    share = max(DEFENSIVE_SHARE, _TRUSTED_DRAWS / (_TRUSTED_DRAWS + draws))
    return (1.0 - share) * best + share * objective.prior


def proportional_table(objective: ObjectiveTables, factor: Float64Array) -> Float64Array | None:
    """p |w| factor, normalised, float64 [N]; None where that is zero everywhere."""
    scale = objective.scale * factor
    # The largest first: products of a prior near the float limits stay finite.
    largest = scale.max(initial=0.0)
    if not largest > 0:
        return None
    mass = objective.prior * (scale / largest)
    total = mass.sum()
    return mass / total if total > 0 else None


class Cumulative(NamedTuple):
    """CDF(t), float64 [N], but for rounding; ``last``: the last timestep of the support."""

    sums: Float64Array
    last: int


def cumulative(table: Float64Array) -> Cumulative:
    """Of a law on the grid."""
    return Cumulative(np.cumsum(table), int(table.nonzero()[0][-1]))


def inverse_cdf(law: Cumulative, points: Float64Array) -> Int64Array:
    """Timesteps t = min { t : u < CDF(t) } for points u in [0, 1), int64 of the same shape."""
    # The last cumulative sum may round below u: stay on the support.
    found: Int64Array = law.sums.searchsorted(points * law.sums[-1], side="right")  # pyright: ignore[reportUnknownVariableType]
    return np.minimum(found, law.last)  # pyright: ignore[reportUnknownArgumentType]


def inverse_cdf_at(law: Cumulative, point: float) -> int:
    """The same of one point."""
    return min(bisect_right(law.sums, point * law.sums.item(-1)), law.last)


def importance_weights(
    prior: Float64Array, proposal: Float64Array, timesteps: Int64Array
) -> Float64Array:
    """p(t) / q(t) at drawn timesteps, float64 of the same shape."""
    return prior[timesteps] / proposal[timesteps]
