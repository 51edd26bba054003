"""The estimators that are compared, as the choices that a request can make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carv_server.sampling.objective import (
    DEFAULT_RANGE,
    NamedWeighting,
    ObjectiveTables,
    prior_on_range,
    weighting_values,
)
from carv_server.sampling.plan import ControlVariate, NoiseCoupling, Sampling
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.schedule import Schedule
from carv_server.sampling.timesteps import TimestepSampler

__all__ = [
    "OURS",
    "PAPER",
    "PAPER_ANTITHETIC",
    "STRATA",
    "UNIFORM",
    "Method",
    "difference_objective",
    "guided_objective",
]


@dataclass(frozen=True)
class Method:
    """``learns``: uses past requests."""

    name: str
    label: str
    sampling: Sampling
    learns: bool = False


UNIFORM = Method(
    "uniform",
    "iid, uniform",
    Sampling(TimestepSampler.IID, Proposal.PRIOR, NoiseCoupling.IID, ControlVariate.NONE),
)
STRATA = Method(
    "strata",
    "strata only",
    Sampling(TimestepSampler.STRATIFIED, Proposal.PRIOR, NoiseCoupling.IID, ControlVariate.NONE),
)
PAPER = Method(
    "paper",
    "paper: weight + strata",
    Sampling(TimestepSampler.STRATIFIED, Proposal.WEIGHT, NoiseCoupling.IID, ControlVariate.NONE),
)
PAPER_ANTITHETIC = Method(
    "weight_antithetic",
    "weight + strata + antithetic",
    Sampling(
        TimestepSampler.STRATIFIED, Proposal.WEIGHT, NoiseCoupling.ANTITHETIC, ControlVariate.NONE
    ),
)
OURS = Method("ours", "ours: the server's default", Sampling(), learns=True)


def guided_objective(
    schedule: Schedule,
    guidance: float,
    weighting: NamedWeighting = NamedWeighting.SDS,
    timestep_range: tuple[float, float] = DEFAULT_RANGE,
) -> ObjectiveTables:
    """w (eps_hat_u + s (eps_hat_c - eps_hat_u) - eps); branches are (c, u)."""
    return _objective(schedule, (guidance, 1.0 - guidance), -1.0, weighting, timestep_range)


def difference_objective(
    schedule: Schedule, timestep_range: tuple[float, float] = DEFAULT_RANGE
) -> ObjectiveTables:
    """eps_hat_c - eps_hat_u, unweighted and without eps: the real-minus-fake score of
    distribution matching, with the unconditional branch as the fake."""
    return _objective(schedule, (1.0, -1.0), 0.0, NamedWeighting.UNIFORM, timestep_range)


def _objective(
    schedule: Schedule,
    coefficients: tuple[float, float],
    noise: float,
    weighting: NamedWeighting,
    timestep_range: tuple[float, float],
) -> ObjectiveTables:
    count = len(schedule)
    return ObjectiveTables(
        prior=prior_on_range(count, *timestep_range),
        weighting=weighting_values(weighting, schedule),
        branch_coefficients=np.repeat(np.array(coefficients)[:, None], count, axis=1),
        noise_coefficient=np.full(count, noise),
    )
