"""The sampling in use against the prior, from past draws; and the profile that the status page
shows.

With m2(t) = E ||h||^2 from the history (``sampling.past``), weighting w and prior p, one draw has

    under the prior, no control variate        M_p = sum_t p w^2 m2
    under the proposal q, weight p/q           M_q = sum_t (p^2 / q) w^2 m2'

where m2' = E ||h - s eps||^2 if the control variate is on and m2 if it is not. The efficiency is
M_p / M_q. Strata and coupling are not in it: they are about draws together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carv_server.history import DrawHistories, history_key
from carv_server.observability.counts import InUse
from carv_server.sampling.past import (
    BINS,
    DrawStatistics,
    Past,
    bin_of_timesteps,
    past_on_grid,
)
from carv_server.sampling.plan import ControlVariate
from carv_server.sampling.schedule import Schedule

__all__ = ["LiveProfile", "ProfileBin", "live_profile", "sampling_efficiency"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ProfileBin:
    """One bin of log-SNR in which draws fell.

    Attributes:
        first, last: timesteps of the prior's support in it.
        draws: discounted number.
        norm: root mean square of ||f|| over its draws: |w| at its middle times that of ||h||.
    """

    first: int
    last: int
    draws: float
    norm: float


@dataclass(frozen=True)
class LiveProfile:
    """What the last history used knows, over the timesteps of the prior's support; n of them.

    Attributes:
        timesteps: int64 [n].
        norm: float64 [n], |w| sqrt(m2), smoothed.
        prior, weight, proposal: float64 [n], p, p |w| normalised, and q: each sums to one.
        draws: discounted number of all draws.
        efficiency: M_p / M_q.
    """

    timesteps: npt.NDArray[np.int64]
    norm: Float64Array
    bins: tuple[ProfileBin, ...]
    prior: Float64Array
    weight: Float64Array
    proposal: Float64Array
    draws: float
    efficiency: float | None
    sampler: str
    proposal_name: str
    coupling: str
    control_variate: str


def sampling_efficiency(in_use: InUse, past: Past) -> float | None:
    """M_p / M_q; None where a moment vanishes."""
    objective, resolved = in_use.sampled.objective, in_use.resolved
    inside = (objective.prior > 0) & (resolved.table > 0)
    prior, scale = objective.prior[inside], objective.scale[inside]
    controlled = resolved.control_variate is ControlVariate.NOISE
    root = past.root_controlled_moment if controlled else past.root_second_moment
    under_prior = float(prior @ (scale * past.root_second_moment[inside]) ** 2)
    weights = prior / resolved.table[inside]
    under_proposal = float((prior * weights) @ (scale * root[inside]) ** 2)
    if not (0 < under_prior < math.inf and 0 < under_proposal < math.inf):
        return None
    return under_prior / under_proposal


def live_profile(in_use: InUse, histories: DrawHistories, schedule: Schedule) -> LiveProfile | None:
    """None where the history is gone or has no draws yet."""
    sampled, resolved = in_use.sampled, in_use.resolved
    objective = sampled.objective
    key = history_key(objective, sampled.use_reference, sampled.label, in_use.tenant)
    statistics = histories.statistics(key)
    past = None if statistics is None else past_on_grid(statistics, schedule)
    if statistics is None or past is None:
        return None
    support = np.flatnonzero(objective.prior)
    scale = objective.scale
    weight = objective.prior * scale
    total = weight.sum()
    return LiveProfile(
        timesteps=support,
        norm=scale[support] * past.root_second_moment[support],
        bins=_bins(statistics, schedule, support, scale),
        prior=objective.prior[support],
        weight=weight[support] / total if total > 0 else objective.prior[support],
        proposal=resolved.table[support],
        draws=past.draws,
        efficiency=sampling_efficiency(in_use, past),
        sampler=resolved.sampler.value,
        proposal_name=resolved.proposal.value,
        coupling=resolved.coupling.value,
        control_variate=resolved.control_variate.value,
    )


def _bins(
    statistics: DrawStatistics,
    schedule: Schedule,
    support: npt.NDArray[np.int64],
    scale: Float64Array,
) -> tuple[ProfileBin, ...]:
    bins = bin_of_timesteps(schedule)[support]
    draws, squares = statistics.sums[0], statistics.sums[1]
    found: list[ProfileBin] = []
    for number in range(BINS):
        members = support[bins == number]
        if len(members) == 0 or not draws[number] > 0:
            continue
        middle = members[len(members) // 2]
        root = math.sqrt(max(0.0, float(squares[number] / draws[number])))
        found.append(
            ProfileBin(
                int(members[0]), int(members[-1]), float(draws[number]), float(scale[middle]) * root
            )
        )
    return tuple(found)
