"""Draw plans: which (t, eps) each render gets, as small host arrays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.past import Past
from carv_server.sampling.proposals import (
    Cumulative,
    Proposal,
    adaptive_table,
    cumulative,
    importance_weights,
    inverse_cdf,
    inverse_cdf_at,
    weight_table,
)
from carv_server.sampling.timesteps import TimestepSampler, place_points

__all__ = [
    "ESTIMATE_STREAMS",
    "PROFILE_STREAMS",
    "REFINE_STREAMS",
    "ControlVariate",
    "DrawPlan",
    "NoiseCoupling",
    "Resolved",
    "Sampling",
    "effective_sample_size",
    "explicit_plan",
    "plan_at_points",
    "plan_draws",
    "resolve",
]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

ESTIMATE_STREAMS = range(2)
"""Of ``plan_draws``: an estimate, or its two halves."""
REFINE_STREAMS = range(3136)
"""The two streams of a refinement, block by block: 2 i and 2 i + 1 for block i. It shares the
first ones with an estimate of its seed: the history keeps both from learning of each other."""
PROFILE_STREAMS = range(4032, 4096)
"""A profile, by bin: it may be recorded under a seed of which nothing else was drawn."""

_CONTROL_GAIN = 0.05
"""Least share of the second moment that the control variate must remove to be on by default."""
_CONTROL_DRAWS = 128.0
"""And the past draws that this must rest on."""


class NoiseCoupling(Enum):
    IID = "iid"
    ANTITHETIC = "antithetic"


class ControlVariate(Enum):
    NONE = "none"
    NOISE = "noise"


@dataclass(frozen=True)
class Sampling:
    """How draws are to be made; never changes the estimand. None leaves a choice to
    ``resolve``."""

    sampler: TimestepSampler | None = None
    proposal: Proposal | None = None
    coupling: NoiseCoupling | None = None
    control_variate: ControlVariate | None = None


@dataclass(frozen=True, eq=False)
class Resolved:
    """How draws are made, every choice taken.

    Attributes:
        table: q(t), float64 [N], sums to one.
        control: c(t), float64 [N]: added to the objective's d(t); zero without control variate.
        past_draws: discounted number of past draws behind ``table`` and ``control``; 0 where
            neither was learned.
    """

    sampler: TimestepSampler
    proposal: Proposal
    coupling: NoiseCoupling
    control_variate: ControlVariate
    table: Float64Array
    control: Float64Array
    past_draws: float

    @cached_property
    def law(self) -> Cumulative:
        return cumulative(self.table)


def resolve(
    sampling: Sampling, objective: ObjectiveTables, past: Past | None, draws: int
) -> Resolved:
    """Take the choices that the request left open, by what measured best:

    - sampler: ``nested``, which is ``global`` at K = 1 and ``stratified`` at R = 1;
    - proposal: ``adaptive``; without a past ``prior``, which unlike ``weight`` never loses against
      independent uniform draws;
    - coupling: ``antithetic`` from K = 2 (an odd K leaves the draw of the last stratum alone:
      measured best among the strata);
    - control variate: ``noise`` where it takes 5 % or more off the second moment that the past
      shows, ``none`` otherwise.

    Nothing here may depend on the request's own draws: ``past`` is fixed before them.

    Args:
        draws: K.

    Raises:
        ValueError: ``weight`` asked for with w zero wherever p is not.
    """
    return _resolve(sampling, objective, past, draws > 1)


@lru_cache(maxsize=64)  # requests that come between two answers have one past
def _resolve(
    sampling: Sampling, objective: ObjectiveTables, past: Past | None, coupled: bool
) -> Resolved:
    control = _control_variate(sampling.control_variate, objective, past)
    moment = None
    if past is not None:
        with_control = control is ControlVariate.NOISE
        moment = past.root_controlled_moment if with_control else past.root_second_moment
    past_draws = 0.0 if past is None else past.draws
    proposal, table = _proposal(sampling.proposal, objective, moment, past_draws)
    coupling = sampling.coupling or NoiseCoupling.ANTITHETIC
    learned = proposal is Proposal.ADAPTIVE or control is ControlVariate.NOISE
    return Resolved(
        sampler=sampling.sampler or TimestepSampler.NESTED,
        proposal=proposal,
        coupling=coupling if coupled else NoiseCoupling.IID,
        control_variate=control,
        table=table,
        control=-past.noise_slope
        if past is not None and control is ControlVariate.NOISE
        else np.zeros_like(objective.prior),
        past_draws=past_draws if learned else 0.0,
    )


def _control_variate(
    asked: ControlVariate | None, objective: ObjectiveTables, past: Past | None
) -> ControlVariate:
    if past is None:
        return ControlVariate.NONE  # c is zero until there are past draws
    if asked is not None:
        return asked
    if past.draws < _CONTROL_DRAWS:
        return ControlVariate.NONE
    # The least second moment over proposals is (sum p |w| sqrt(m2))^2, with and without.
    scale = objective.prior * objective.scale
    before = float(scale @ past.root_second_moment) ** 2
    after = float(scale @ past.root_controlled_moment) ** 2
    gains = after < (1.0 - _CONTROL_GAIN) * before
    return ControlVariate.NOISE if gains else ControlVariate.NONE


def _proposal(
    asked: Proposal | None,
    objective: ObjectiveTables,
    moment: Float64Array | None,
    past_draws: float,
) -> tuple[Proposal, Float64Array]:
    if asked is Proposal.WEIGHT:
        table = weight_table(objective)
        if table is None:
            raise ValueError("the weighting is zero wherever the prior is not")
        return Proposal.WEIGHT, table
    if asked is not Proposal.PRIOR and moment is not None:
        table = adaptive_table(objective, moment, past_draws)
        if table is not None:
            return Proposal.ADAPTIVE, table
    return Proposal.PRIOR, objective.prior


@dataclass(frozen=True)
class DrawPlan:
    """K draws for each of R renders, all arrays [R, K].

    Attributes:
        timesteps: int64, on the teacher's grid.
        noise_indices: int64; eps = signs * noise(seed, render, noise index).
        signs: float64, +1 or -1.
        importance_weights: float64, p/q.
        control_coefficients: float64, c(t), added to d(t).
        groups: int64; draws of one render that share eps are one group, and groups are
            independent given their timesteps.
        cells: int64; neighbouring groups whose spread stands for their variance: two of them
            where a render has strata of its own, three at the end of an odd number; elsewhere
            a cell is one group. A cell never leaves its microbatch.
        identically_distributed: whether the groups of a render have one law, so that their
            sample variance is unbiased; if not, it is conservative.
    """

    timesteps: Int64Array
    noise_indices: Int64Array
    signs: Float64Array
    importance_weights: Float64Array
    control_coefficients: Float64Array
    groups: Int64Array
    cells: Int64Array
    identically_distributed: bool

    @property
    def renders(self) -> int:
        return self.timesteps.shape[0]

    @property
    def draws(self) -> int:
        return self.timesteps.shape[1]


def plan_draws(
    resolved: Resolved,
    objective: ObjectiveTables,
    renders: int,
    draws: int,
    seed: int,
    stream: int = 0,
) -> DrawPlan:
    """Place K draws for each of R renders; a pure function of its arguments. Streams share
    no draw: noise indices of stream s start at s 2^20, and s is below 2^12."""
    points = place_points(resolved.sampler, renders, draws, seed, stream)
    if renders * draws == 1:
        return _one_draw(resolved, objective, points.item(), stream << 20)
    return plan_at_points(resolved, objective, points, first_noise_index=stream << 20)


def plan_at_points(
    resolved: Resolved,
    objective: ObjectiveTables,
    points: Float64Array,
    first_noise_index: int = 0,
) -> DrawPlan:
    """A plan from points u_rk in [0, 1), [R, K], through the inverse CDF of the proposal.

    ``antithetic`` couples draws 2j and 2j + 1 of a render: they share a noise index with
    opposite signs, and under any stratified sampler they lie in adjacent strata, so each
    keeps its own t. The last draw of an odd K stands alone.
    """
    timesteps = inverse_cdf(resolved.law, points)
    renders, draws = points.shape
    layout = _layout(resolved.sampler, resolved.coupling, renders, draws)
    return DrawPlan(
        timesteps=timesteps,
        noise_indices=layout.groups + first_noise_index,
        signs=layout.signs,
        importance_weights=importance_weights(objective.prior, resolved.table, timesteps),
        control_coefficients=resolved.control[timesteps],
        groups=layout.groups,
        cells=layout.cells,
        identically_distributed=resolved.sampler is TimestepSampler.IID,
    )


def _one_draw(
    resolved: Resolved, objective: ObjectiveTables, point: float, noise_index: int
) -> DrawPlan:
    """``plan_at_points`` of one point by Python's numbers, in a third of the time: many clients
    ask for one draw at a time."""
    t = inverse_cdf_at(resolved.law, point)
    layout = _layout(resolved.sampler, resolved.coupling, 1, 1)
    return DrawPlan(
        timesteps=np.array([[t]]),
        noise_indices=np.array([[noise_index]]),
        signs=layout.signs,
        importance_weights=np.array([[objective.prior.item(t) / resolved.table.item(t)]]),
        control_coefficients=np.array([[resolved.control.item(t)]]),
        groups=layout.groups,
        cells=layout.cells,
        identically_distributed=resolved.sampler is TimestepSampler.IID,
    )


class _Layout(NamedTuple):
    """What of a plan depends on its size alone: [R, K], read-only."""

    groups: Int64Array
    cells: Int64Array
    signs: Float64Array


@lru_cache(maxsize=256)
def _layout(sampler: TimestepSampler, coupling: NoiseCoupling, renders: int, draws: int) -> _Layout:
    k: Int64Array = np.arange(draws, dtype=np.int64)
    if coupling is NoiseCoupling.ANTITHETIC:
        group, sign = k // 2, np.where(k % 2 == 0, 1.0, -1.0)
    else:
        group, sign = k, np.ones(draws)
    # Only where each render has strata of its own are neighbours in k neighbours in t by design:
    # under ``global`` the draws of a render are dealt at random and then sorted.
    if sampler in (TimestepSampler.STRATIFIED, TimestepSampler.NESTED):
        cell = np.minimum(group // 2, max(0, (int(group[-1]) - 1) // 2))
    else:
        cell = group
    shape = (renders, draws)
    return _Layout(
        np.broadcast_to(group, shape), np.broadcast_to(cell, shape), np.broadcast_to(sign, shape)
    )


def explicit_plan(
    timesteps: Int64Array,
    noise_indices: Int64Array,
    signs: Float64Array,
    weights: Float64Array,
) -> DrawPlan:
    """A plan from the client's own draws, all [R, K]; draws that share a noise index are one
    group. Nothing is known of the law of the client's timesteps."""
    groups = np.zeros_like(noise_indices)
    if groups.shape[1] > 1:
        # Ranks of the distinct indices of each render.
        order = np.argsort(noise_indices, axis=1)
        sorted_indices = np.take_along_axis(noise_indices, order, axis=1)
        ranks = np.zeros_like(noise_indices)
        ranks[:, 1:] = np.cumsum(sorted_indices[:, 1:] != sorted_indices[:, :-1], axis=1)
        np.put_along_axis(groups, order, ranks, axis=1)
    return DrawPlan(
        timesteps, noise_indices, signs, weights, np.zeros_like(weights), groups, groups, False
    )


def effective_sample_size(weights: Float64Array) -> Float64Array:
    """Kish's (sum w)^2 / sum w^2 over the last axis; zero where all weights are zero."""
    if weights.shape[-1] == 1:
        return (weights[..., 0] != 0).astype(np.float64)
    squares = (weights * weights).sum(axis=-1)
    totals = weights.sum(axis=-1) ** 2
    return np.divide(totals, squares, out=np.zeros_like(totals), where=squares > 0)
