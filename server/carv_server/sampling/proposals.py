"""Proposals q(t): laws that t is drawn from. They never change the estimand, since every draw
carries the importance weight p/q."""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from carv_server.sampling.objective import ObjectiveTables

__all__ = ["Proposal", "importance_weights", "inverse_cdf", "proposal_table"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


class Proposal(Enum):
    PRIOR = "prior"
    WEIGHT = "weight"


def proposal_table(proposal: Proposal, objective: ObjectiveTables) -> Float64Array:
    """q(t), float64 [N], sums to one.

    ``prior``: q = p. ``weight``: q proportional to p |w|, the paper's heuristic (arXiv
    2605.21489, Section 4); it can hurt where ||f|| does not follow w. Where w vanishes, so
    does the integrand, and q may be zero there without bias.

    Raises:
        ValueError: ``weight`` with w zero wherever p is not.
    """
    prior = objective.prior
    if proposal is Proposal.PRIOR:
        return prior
    mass = np.where(prior > 0, prior * np.abs(np.where(prior > 0, objective.weighting, 0.0)), 0.0)
    total = mass.sum()
    if not total > 0:
        raise ValueError("the weighting is zero wherever the prior is not")
    return mass / total


def inverse_cdf(table: Float64Array, points: Float64Array) -> Int64Array:
    """Timesteps t = min { t : u < CDF(t) } for points u in [0, 1), int64 of the same shape."""
    cdf = np.cumsum(table)
    support = np.flatnonzero(table)
    # The last cumulative sum may round below u: stay on the support.
    found: Int64Array = np.searchsorted(  # pyright: ignore[reportUnknownVariableType]
        cdf, points * cdf[-1], side="right"
    )
    return np.minimum(found, support[-1])  # pyright: ignore[reportUnknownArgumentType]


def importance_weights(
    prior: Float64Array, proposal: Float64Array, timesteps: Int64Array
) -> Float64Array:
    """p(t) / q(t) at drawn timesteps, float64 of the same shape."""
    return prior[timesteps] / proposal[timesteps]
