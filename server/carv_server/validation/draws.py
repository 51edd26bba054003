"""Sampling and explicit draws to draw specifications."""

from __future__ import annotations

import numpy as np

from carv.v1 import sampling_pb2 as pb
from carv.v1 import tensor_pb2
from carv_server.request import DrawSpec, RequestLimits
from carv_server.sampling.plan import (
    DEFAULT_SAMPLING,
    DrawPlan,
    NoiseCoupling,
    Sampling,
    explicit_plan,
)
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.timesteps import TimestepSampler
from carv_server.validation.checks import Violations, draw_array

__all__ = ["COUPLINGS", "PROPOSALS", "SAMPLERS", "check_explicit_draws", "check_sampling"]

SAMPLERS = {
    pb.TIMESTEP_SAMPLER_UNSPECIFIED: DEFAULT_SAMPLING.sampler,
    pb.TIMESTEP_SAMPLER_IID: TimestepSampler.IID,
    pb.TIMESTEP_SAMPLER_STRATIFIED: TimestepSampler.STRATIFIED,
    pb.TIMESTEP_SAMPLER_GLOBAL: TimestepSampler.GLOBAL,
    pb.TIMESTEP_SAMPLER_NESTED: TimestepSampler.NESTED,
}
PROPOSALS = {
    pb.PROPOSAL_UNSPECIFIED: DEFAULT_SAMPLING.proposal,
    pb.PROPOSAL_PRIOR: Proposal.PRIOR,
    pb.PROPOSAL_WEIGHT: Proposal.WEIGHT,
}
COUPLINGS = {
    pb.NOISE_COUPLING_UNSPECIFIED: DEFAULT_SAMPLING.coupling,
    pb.NOISE_COUPLING_IID: NoiseCoupling.IID,
    pb.NOISE_COUPLING_ANTITHETIC: NoiseCoupling.ANTITHETIC,
}
_MAX_NOISE_INDEX = 2**32 - 1


def check_sampling(
    message: pb.Sampling, limits: RequestLimits, violations: Violations
) -> DrawSpec | None:
    """Known enum values and 1 <= K <= max_draws, or None with violations."""
    sampler = SAMPLERS.get(message.timestep_sampler)
    proposal = PROPOSALS.get(message.proposal)
    coupling = COUPLINGS.get(message.noise_coupling)
    for field, found, value, enum in (
        ("timestep_sampler", sampler, message.timestep_sampler, pb.TimestepSampler),
        ("proposal", proposal, message.proposal, pb.Proposal),
        ("noise_coupling", coupling, message.noise_coupling, pb.NoiseCoupling),
    ):
        if found is None:
            known = ", ".join(enum.keys()[1:])
            violations.add(f"sampling.{field}", f"unknown value {value}; known: {known}")
    if not 1 <= message.draws <= limits.max_draws:
        violations.add("sampling.draws", f"{message.draws}; must be in 1 .. {limits.max_draws}")
        return None
    if sampler is None or proposal is None or coupling is None:
        return None
    return DrawSpec(Sampling(sampler, proposal, coupling), message.draws)


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
