"""Sampling and explicit draws to draw specifications."""

from __future__ import annotations

from typing import Any

import numpy as np

from carv.v1 import sampling_pb2 as pb
from carv.v1 import tensor_pb2
from carv_server.request import DrawSpec, RequestLimits
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import (
    ControlVariate,
    DrawPlan,
    NoiseCoupling,
    Sampling,
    explicit_plan,
)
from carv_server.sampling.proposals import DEFENSIVE_SHARE, Proposal, weight_table
from carv_server.sampling.timesteps import TimestepSampler
from carv_server.validation.checks import FLOAT32_MAX, Violations, draw_array

__all__ = [
    "CONTROL_VARIATES",
    "COUPLINGS",
    "PROPOSALS",
    "SAMPLERS",
    "check_choices",
    "check_explicit_draws",
    "check_sampling",
    "check_weighting",
]

SAMPLERS = {
    pb.TIMESTEP_SAMPLER_UNSPECIFIED: None,
    pb.TIMESTEP_SAMPLER_IID: TimestepSampler.IID,
    pb.TIMESTEP_SAMPLER_STRATIFIED: TimestepSampler.STRATIFIED,
    pb.TIMESTEP_SAMPLER_GLOBAL: TimestepSampler.GLOBAL,
    pb.TIMESTEP_SAMPLER_NESTED: TimestepSampler.NESTED,
}
PROPOSALS = {
    pb.PROPOSAL_UNSPECIFIED: None,
    pb.PROPOSAL_PRIOR: Proposal.PRIOR,
    pb.PROPOSAL_WEIGHT: Proposal.WEIGHT,
    pb.PROPOSAL_ADAPTIVE: Proposal.ADAPTIVE,
}
COUPLINGS = {
    pb.NOISE_COUPLING_UNSPECIFIED: None,
    pb.NOISE_COUPLING_IID: NoiseCoupling.IID,
    pb.NOISE_COUPLING_ANTITHETIC: NoiseCoupling.ANTITHETIC,
}
CONTROL_VARIATES = {
    pb.CONTROL_VARIATE_UNSPECIFIED: None,
    pb.CONTROL_VARIATE_NONE: ControlVariate.NONE,
    pb.CONTROL_VARIATE_NOISE: ControlVariate.NOISE,
}
_MAX_NOISE_INDEX = 2**32 - 1


def check_sampling(
    message: pb.Sampling,
    limits: RequestLimits,
    violations: Violations,
    *,
    half_estimates: bool = False,
) -> DrawSpec | None:
    """Known enum values and 1 <= K <= max_draws, or None with violations."""
    sampling, history = check_choices(message, limits, violations)
    if not 1 <= message.draws <= limits.max_draws:
        violations.add("sampling.draws", f"{message.draws}; must be in 1 .. {limits.max_draws}")
        return None
    if half_estimates and message.draws % 2:
        violations.add(
            "sampling.draws", f"{message.draws}; must be even where half-estimates are returned"
        )
        return None
    if sampling is None:
        return None
    return DrawSpec(sampling, message.draws, history, half_estimates)


def check_choices(
    message: pb.Sampling, limits: RequestLimits, violations: Violations
) -> tuple[Sampling | None, str]:
    """Everything about sampling but K, and the history's label; None with violations."""
    choices: list[Any] = []
    known_values = True
    for field, table, enum in (
        ("timestep_sampler", SAMPLERS, pb.TimestepSampler),
        ("proposal", PROPOSALS, pb.Proposal),
        ("noise_coupling", COUPLINGS, pb.NoiseCoupling),
        ("control_variate", CONTROL_VARIATES, pb.ControlVariate),
    ):
        value = getattr(message, field)
        if value not in table:
            known = ", ".join(enum.keys()[1:])
            violations.add(f"sampling.{field}", f"unknown value {value}; known: {known}")
            known_values = False
        choices.append(table.get(value))
    if len(message.history) > limits.max_history_characters:
        violations.add(
            "sampling.history",
            f"{len(message.history)} characters; the limit is {limits.max_history_characters}",
        )
        known_values = False
    return (Sampling(*choices) if known_values else None), message.history


def check_weighting(sampling: Sampling, objective: ObjectiveTables, violations: Violations) -> None:
    """Only the prior can propose where the integrand is zero everywhere, and no draw's p/q w may
    overflow."""
    if sampling.proposal is not Proposal.PRIOR and weight_table(objective) is None:
        violations.add("objective.weighting", "the weighting is zero wherever the prior is not")
    limit = DEFENSIVE_SHARE * FLOAT32_MAX
    largest = objective.largest_scale
    if largest > limit:
        violations.add(
            "objective.weighting",
            f"{largest:.3g} in size; the limit is {limit:.3g}, since importance weights may "
            f"multiply it by {1 / DEFENSIVE_SHARE:.0f}",
        )


def check_explicit_draws(
    message: pb.ExplicitDraws,
    renders: int | None,
    timesteps: int,
    limits: RequestLimits,
    violations: Violations,
    *,
    timesteps_only: bool = False,
) -> DrawPlan | None:
    """The client's own draws, all [R, K] within bounds, or None with violations.

    Args:
        renders: R of the latents; None where these were at fault.
        timesteps: N of the grid.
        timesteps_only: z_t comes from the client: K is 1 and there is no noise to make.
    """
    prefix = "explicit_draws"
    floats, integers = (tensor_pb2.D_TYPE_FLOAT32,), (tensor_pb2.D_TYPE_INT64,)
    t = draw_array(message.timesteps, f"{prefix}.timesteps", None, integers, violations)
    # Where the timesteps are at fault the other arrays are still looked at, with any shape.
    shape: tuple[int, int] | None = None
    if t is not None:
        shape = (t.shape[0], t.shape[1])
        if renders is not None and shape[0] != renders:
            violations.add(f"{prefix}.timesteps.shape", f"{list(shape)}; R must be {renders}")
        largest = 1 if timesteps_only else limits.max_draws
        if shape[1] > largest:
            violations.add(
                f"{prefix}.timesteps.shape", f"K is {shape[1]}; it must be in 1 .. {largest}"
            )
        if t.min() < 0 or t.max() >= timesteps:
            violations.add(f"{prefix}.timesteps", f"must be in 0 .. {timesteps - 1}")
    filled = shape or (1, 1)
    index, sign, weight = np.zeros(filled, dtype=np.int64), np.ones(filled), np.ones(filled)
    if timesteps_only:
        for name in ("noise_indices", "signs", "importance_weights"):
            if message.HasField(name):
                violations.add(f"{prefix}.{name}", "not used with noisy_latents; leave it out")
    else:
        index = draw_array(
            message.noise_indices, f"{prefix}.noise_indices", shape, integers, violations
        )
        if index is not None and (index.min() < 0 or index.max() > _MAX_NOISE_INDEX):
            violations.add(f"{prefix}.noise_indices", f"must be in 0 .. {_MAX_NOISE_INDEX}")
    if message.HasField("signs") and not timesteps_only:
        sign = draw_array(message.signs, f"{prefix}.signs", shape, floats, violations)
        if sign is not None and not np.isin(sign, (-1.0, 1.0)).all():
            violations.add(f"{prefix}.signs", "each must be +1 or -1")
    if message.HasField("importance_weights") and not timesteps_only:
        weight = draw_array(
            message.importance_weights, f"{prefix}.importance_weights", shape, floats, violations
        )
        if weight is not None and not np.isfinite(weight).all():
            violations.add(f"{prefix}.importance_weights", "each must be finite")
    if violations or t is None or index is None or sign is None or weight is None:
        return None
    return explicit_plan(
        t.astype(np.int64), index.astype(np.int64), sign.astype(float), weight.astype(float)
    )
