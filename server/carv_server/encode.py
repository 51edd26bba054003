"""Domain objects to reply messages."""

from __future__ import annotations

import numpy as np
import torch
from google.protobuf.timestamp_pb2 import Timestamp

from carv.tensors import encode_tensor
from carv.v1 import sampling_pb2, teacher_pb2, teacher_service_pb2, tensor_pb2
from carv_server.estimate import Estimate, VarianceEstimator
from carv_server.profile import MeasuredProfile
from carv_server.refine.call import Refined
from carv_server.refine.streams import StopReason
from carv_server.request import RequestLimits
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import ControlVariate, NoiseCoupling, Resolved
from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.schedule import ScheduleKind
from carv_server.sampling.timesteps import TimestepSampler
from carv_server.store import StoreConfig
from carv_server.teachers.protocol import TeacherDescription

__all__ = [
    "encode_diagnostics",
    "encode_draws",
    "encode_profile",
    "encode_refined",
    "encode_sampling",
    "encode_teacher",
    "encode_time",
]

_PREDICTION_TYPES = {
    PredictionType.EPSILON: teacher_pb2.PREDICTION_TYPE_EPSILON,
    PredictionType.V: teacher_pb2.PREDICTION_TYPE_V,
    PredictionType.SAMPLE: teacher_pb2.PREDICTION_TYPE_SAMPLE,
    PredictionType.FLOW: teacher_pb2.PREDICTION_TYPE_FLOW,
}
_SCHEDULE_KINDS = {
    ScheduleKind.DISCRETE: teacher_pb2.SCHEDULE_KIND_DISCRETE,
    ScheduleKind.FLOW: teacher_pb2.SCHEDULE_KIND_FLOW,
}
_SAMPLERS = {
    TimestepSampler.IID: sampling_pb2.TIMESTEP_SAMPLER_IID,
    TimestepSampler.STRATIFIED: sampling_pb2.TIMESTEP_SAMPLER_STRATIFIED,
    TimestepSampler.GLOBAL: sampling_pb2.TIMESTEP_SAMPLER_GLOBAL,
    TimestepSampler.NESTED: sampling_pb2.TIMESTEP_SAMPLER_NESTED,
}
_PROPOSALS = {
    Proposal.PRIOR: sampling_pb2.PROPOSAL_PRIOR,
    Proposal.WEIGHT: sampling_pb2.PROPOSAL_WEIGHT,
    Proposal.ADAPTIVE: sampling_pb2.PROPOSAL_ADAPTIVE,
}
_COUPLINGS = {
    NoiseCoupling.IID: sampling_pb2.NOISE_COUPLING_IID,
    NoiseCoupling.ANTITHETIC: sampling_pb2.NOISE_COUPLING_ANTITHETIC,
}
_CONTROL_VARIATES = {
    ControlVariate.NONE: sampling_pb2.CONTROL_VARIATE_NONE,
    ControlVariate.NOISE: sampling_pb2.CONTROL_VARIATE_NOISE,
}
_VARIANCE_ESTIMATORS = {
    VarianceEstimator.UNAVAILABLE: teacher_service_pb2.VARIANCE_ESTIMATOR_UNAVAILABLE,
    VarianceEstimator.UNBIASED: teacher_service_pb2.VARIANCE_ESTIMATOR_UNBIASED,
    VarianceEstimator.CONSERVATIVE: teacher_service_pb2.VARIANCE_ESTIMATOR_CONSERVATIVE,
}
_STOP_REASONS = {
    None: teacher_service_pb2.STOP_REASON_UNSPECIFIED,
    StopReason.TARGET: teacher_service_pb2.STOP_REASON_TARGET,
    StopReason.DRAW_BUDGET: teacher_service_pb2.STOP_REASON_DRAW_BUDGET,
    StopReason.TIME_BUDGET: teacher_service_pb2.STOP_REASON_TIME_BUDGET,
}
_TENSOR_DTYPES = {
    torch.float32: tensor_pb2.D_TYPE_FLOAT32,
    torch.float16: tensor_pb2.D_TYPE_FLOAT16,
    torch.bfloat16: tensor_pb2.D_TYPE_BFLOAT16,
    torch.int64: tensor_pb2.D_TYPE_INT64,
}


def encode_teacher(
    teacher_id: str,
    description: TeacherDescription,
    *,
    device: str,
    limits: RequestLimits,
    kept_latents: StoreConfig,
    max_message_bytes: int,
    evaluation_seconds: float,
    with_schedule: bool,
) -> teacher_pb2.Teacher:
    conditioning = description.conditioning
    schedule = None
    if with_schedule:
        schedule = teacher_pb2.Schedule(
            kind=_SCHEDULE_KINDS[description.schedule.kind],
            alpha=description.schedule.alpha,
            sigma=description.schedule.sigma,
        )
    return teacher_pb2.Teacher(
        id=teacher_id,
        digest=description.digest,
        family=description.family,
        event_shape=description.event_shape,
        schedule=schedule,
        prediction_type=_PREDICTION_TYPES[description.prediction_type],
        conditioning_schema=teacher_pb2.ConditioningSchema(
            accepts_prompts=conditioning.accepts_prompts,
            classes=conditioning.classes,
            has_unconditional=conditioning.has_unconditional,
            tensors=[
                teacher_pb2.ConditioningTensor(
                    name=tensor.name, dtype=_TENSOR_DTYPES[tensor.dtype], shape=tensor.shape
                )
                for tensor in conditioning.tensors
            ],
            vocabulary=conditioning.vocabulary,
        ),
        limits=teacher_pb2.Limits(
            max_message_bytes=max_message_bytes,
            max_draws=limits.max_draws,
            max_renders=limits.max_renders,
            max_branches=limits.max_branches,
            max_evaluations=limits.max_evaluations,
            max_prompts=limits.max_prompts,
            max_prompt_characters=limits.max_prompt_characters,
            max_stream_requests=limits.max_stream_requests,
            max_kept_latents=kept_latents.max_entries,
            max_kept_latents_bytes=kept_latents.max_bytes,
        ),
        latent_scaling=teacher_pb2.LatentScaling(
            scaling_factor=description.scaling_factor, shift_factor=description.shift_factor
        ),
        evaluation_seconds=evaluation_seconds,
        device=device,
        description=description.description,
    )


def encode_time(seconds: float) -> Timestamp:
    """A wall-clock moment."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def encode_sampling(resolved: Resolved, draws: int, history: str) -> sampling_pb2.Sampling:
    return sampling_pb2.Sampling(
        timestep_sampler=_SAMPLERS[resolved.sampler],
        proposal=_PROPOSALS[resolved.proposal],
        noise_coupling=_COUPLINGS[resolved.coupling],
        draws=draws,
        history=history,
        control_variate=_CONTROL_VARIATES[resolved.control_variate],
    )


def encode_diagnostics(estimate: Estimate) -> teacher_service_pb2.Diagnostics:
    variance, sampling = estimate.noise_variance, estimate.sampling
    return teacher_service_pb2.Diagnostics(
        variance_estimator=_VARIANCE_ESTIMATORS[estimate.variance_estimator],
        noise_variance=None if variance is None else encode_tensor(variance),
        effective_sample_size=encode_tensor(estimate.effective_sample_size),
        past_draws=0.0 if sampling is None else sampling.past_draws,
    )


def encode_draws(estimate: Estimate) -> teacher_service_pb2.DrawTable:
    draws, sampling = estimate.draws, estimate.sampling
    controlled = sampling is not None and sampling.control_variate is ControlVariate.NOISE
    return teacher_service_pb2.DrawTable(
        timesteps=encode_tensor(draws.timesteps),
        noise_indices=encode_tensor(draws.noise_indices),
        signs=encode_tensor(draws.signs.astype(np.float32)),
        importance_weights=encode_tensor(draws.importance_weights),
        norms=encode_tensor(draws.norms),
        control_coefficients=encode_tensor(draws.control_coefficients) if controlled else None,
    )


def encode_profile(
    measured: MeasuredProfile,
    objective: ObjectiveTables,
    *,
    evaluation_seconds: float,
    digest: str,
    seed: int,
) -> teacher_service_pb2.Profile:
    profile, adaptive = measured.profile, measured.adaptive
    return teacher_service_pb2.Profile(
        bins=[
            teacher_service_pb2.ProfileBin(
                first_timestep=where.first,
                last_timestep=where.last,
                log_snr=where.log_snr,
                prior_mass=where.mass,
                second_moment=moments.second_moment,
                second_moment_error=moments.second_moment_error,
                squared_mean=moments.squared_mean,
                even_second_moment=moments.even_second_moment,
                noise_slope=moments.noise_slope,
            )
            for where, moments in zip(profile.bins, profile.moments, strict=True)
        ],
        prior=objective.prior,
        weight=profile.weight,
        adaptive=adaptive,
        oracle=profile.oracle,
        past_draws=measured.past_draws,
        prior_variance=profile.prior_variance,
        weight_variance=profile.weight_variance,
        oracle_variance=profile.oracle_variance,
        squared_gradient=profile.squared_gradient,
        evaluation_seconds=evaluation_seconds,
        teacher_digest=digest,
        seed=seed,
        draws_spent=measured.draws,
        evaluations_spent=measured.evaluations,
    )


def encode_refined(
    refined: Refined,
    *,
    history: str,
    seed: int,
    teacher_digest: str,
    timings: teacher_service_pb2.Timings,
) -> teacher_service_pb2.RefineGradientResponse:
    variance = refined.noise_variance
    return teacher_service_pb2.RefineGradientResponse(
        gradient=encode_tensor(refined.gradient),
        noise_variance=None if variance is None else encode_tensor(variance),
        variance_estimator=_VARIANCE_ESTIMATORS[refined.variance_estimator],
        relative_standard_error=encode_tensor(refined.relative_standard_error),
        draws=encode_tensor(refined.draws),
        stop_reasons=[_STOP_REASONS[reason] for reason in refined.stop_reasons],
        final=refined.final,
        teacher_digest=teacher_digest,
        seed=seed,
        sampling=encode_sampling(refined.sampling, 0, history),
        draws_spent=refined.draws_spent,
        evaluations_spent=refined.evaluations_spent,
        timings=timings,
    )
