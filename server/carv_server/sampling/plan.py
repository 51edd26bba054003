"""Draw plans: which (t, eps) each render gets, as small host arrays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.proposals import (
    Proposal,
    importance_weights,
    inverse_cdf,
    proposal_table,
)
from carv_server.sampling.timesteps import TimestepSampler, place_points

__all__ = [
    "DEFAULT_SAMPLING",
    "DrawPlan",
    "NoiseCoupling",
    "Sampling",
    "effective_sample_size",
    "explicit_plan",
    "plan_at_points",
    "plan_draws",
]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


class NoiseCoupling(Enum):
    IID = "iid"
    ANTITHETIC = "antithetic"


@dataclass(frozen=True)
class Sampling:
    """How draws are made; never changes the estimand."""

    sampler: TimestepSampler
    proposal: Proposal
    coupling: NoiseCoupling


DEFAULT_SAMPLING = Sampling(TimestepSampler.NESTED, Proposal.WEIGHT, NoiseCoupling.ANTITHETIC)
"""What a request that says nothing about sampling gets."""


@dataclass(frozen=True)
class DrawPlan:
    """K draws for each of R renders, all arrays [R, K].

    Attributes:
        timesteps: int64, on the teacher's grid.
        noise_indices: int64; eps = signs * noise(seed, render, noise index).
        signs: float64, +1 or -1.
        importance_weights: float64, p/q.
        groups: int64; draws of one render that share eps are one group, and groups are
            independent given their timesteps. A group never leaves its microbatch.
        identically_distributed: whether the groups of a render have one law, so that their
            sample variance is unbiased; if not, it is conservative.
    """

    timesteps: Int64Array
    noise_indices: Int64Array
    signs: Float64Array
    importance_weights: Float64Array
    groups: Int64Array
    identically_distributed: bool

    @property
    def renders(self) -> int:
        return self.timesteps.shape[0]

    @property
    def draws(self) -> int:
        return self.timesteps.shape[1]


def plan_draws(
    sampling: Sampling, objective: ObjectiveTables, renders: int, draws: int, seed: int
) -> DrawPlan:
    """Place K draws for each of R renders; a pure function of its arguments.

    Raises:
        ValueError: as ``proposal_table``.
    """
    return plan_at_points(sampling, objective, place_points(sampling.sampler, renders, draws, seed))


def plan_at_points(
    sampling: Sampling, objective: ObjectiveTables, points: Float64Array
) -> DrawPlan:
    """A plan from points u_rk in [0, 1), [R, K], through the inverse CDF of the proposal.

    ``antithetic`` couples draws 2j and 2j + 1 of a render: they share noise index j with
    opposite signs, and under any stratified sampler they lie in adjacent strata, so each
    keeps its own t. The last draw of an odd K stands alone.

    Raises:
        ValueError: as ``proposal_table``.
    """
    table = proposal_table(sampling.proposal, objective)
    timesteps = inverse_cdf(table, points)
    k: Int64Array = np.arange(points.shape[1], dtype=np.int64)
    if sampling.coupling is NoiseCoupling.ANTITHETIC:
        noise_index, sign = k // 2, np.where(k % 2 == 0, 1.0, -1.0)
    else:
        noise_index, sign = k, np.ones(len(k))
    return DrawPlan(
        timesteps=timesteps,
        noise_indices=np.broadcast_to(noise_index, points.shape),
        signs=np.broadcast_to(sign, points.shape),
        importance_weights=importance_weights(objective.prior, table, timesteps),
        groups=np.broadcast_to(noise_index, points.shape),
        identically_distributed=sampling.sampler is TimestepSampler.IID,
    )


def explicit_plan(
    timesteps: Int64Array,
    noise_indices: Int64Array,
    signs: Float64Array,
    weights: Float64Array,
) -> DrawPlan:
    """A plan from the client's own draws, all [R, K]; draws that share a noise index are one
    group. Nothing is known of the law of the client's timesteps."""
    groups = np.empty_like(noise_indices)
    for render, row in enumerate(noise_indices):
        groups[render] = np.unique(row, return_inverse=True)[1].reshape(-1)
    return DrawPlan(timesteps, noise_indices, signs, weights, groups, False)


def effective_sample_size(weights: Float64Array) -> Float64Array:
    """Kish's (sum w)^2 / sum w^2 over the last axis; zero where all weights are zero."""
    squares = np.sum(weights**2, axis=-1)
    totals = np.sum(weights, axis=-1) ** 2
    return np.divide(totals, squares, out=np.zeros_like(totals), where=squares > 0)
