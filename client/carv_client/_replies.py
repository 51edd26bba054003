"""Reply messages to values: pure functions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from carv.tensors import decode_tensor, dtype_name
from carv.v1 import (
    conditioning_pb2,
    latents_pb2,
    sampling_pb2,
    teacher_pb2,
    teacher_service_pb2,
)
from carv.v1.tensor_pb2 import Tensor
from carv_client._kept import KeptLatents
from carv_client._profile_types import ProfileBin, TeacherProfile
from carv_client._types import (
    Conditioning,
    ConditioningTensor,
    DrawTable,
    Estimate,
    Limits,
    NoisePrediction,
    RefinedEstimate,
    Teacher,
    frozen,
)

__all__ = [
    "conditioning",
    "estimate",
    "kept_latents",
    "noise_prediction",
    "profile",
    "refined",
    "teacher",
]


def teacher(message: teacher_pb2.Teacher) -> Teacher:
    """Decode a teacher."""
    schema, limits = message.conditioning_schema, message.limits
    return Teacher(
        id=message.id,
        digest=message.digest,
        family=message.family,
        event_shape=tuple(message.event_shape),
        schedule_kind=_name(teacher_pb2.ScheduleKind, "SCHEDULE_KIND_", message.schedule.kind),
        alpha=frozen(message.schedule.alpha),
        sigma=frozen(message.schedule.sigma),
        prediction_type=_name(
            teacher_pb2.PredictionType, "PREDICTION_TYPE_", message.prediction_type
        ),
        accepts_prompts=schema.accepts_prompts,
        classes=schema.classes,
        has_unconditional=schema.has_unconditional,
        vocabulary=tuple(schema.vocabulary),
        conditioning_tensors=tuple(
            ConditioningTensor(part.name, dtype_name(part.dtype), tuple(part.shape))
            for part in schema.tensors
        ),
        limits=Limits(
            max_message_bytes=limits.max_message_bytes,
            max_draws=limits.max_draws,
            max_renders=limits.max_renders,
            max_branches=limits.max_branches,
            max_evaluations=limits.max_evaluations,
            max_prompts=limits.max_prompts,
            max_prompt_characters=limits.max_prompt_characters,
            max_stream_requests=limits.max_stream_requests,
            max_kept_latents=limits.max_kept_latents,
            max_kept_latents_bytes=limits.max_kept_latents_bytes,
        ),
        scaling_factor=message.latent_scaling.scaling_factor,
        shift_factor=message.latent_scaling.shift_factor,
        evaluation_seconds=message.evaluation_seconds,
        device=message.device,
        description=message.description,
    )


def conditioning(
    message: conditioning_pb2.Conditioning,
    teacher: str,
    label: str,
    source: conditioning_pb2.ConditioningSource,
    blend: tuple[Conditioning, ...] = (),
) -> Conditioning:
    """A conditioning that remembers the source it was made from."""
    return Conditioning(
        handle=message.handle,
        teacher=teacher,
        label=label,
        expire_time=_expire_time(message),
        source=source.SerializeToString(deterministic=True),
        blend=blend,
    )


def kept_latents(message: latents_pb2.Latents, teacher: str, tensor: Tensor) -> KeptLatents:
    """Kept latents that remember what was sent."""
    return KeptLatents(
        handle=message.handle,
        teacher=teacher,
        shape=tuple(tensor.shape),
        expire_time=_expire_time(message),
        tensor=tensor.SerializeToString(),
    )


def estimate(message: teacher_service_pb2.EstimateGradientResponse) -> Estimate:
    """Decode an estimate."""
    pb = teacher_service_pb2
    diagnostics, timings, table = message.diagnostics, message.timings, message.draw_table
    drawn = message.HasField("sampling")
    used = message.sampling
    return Estimate(
        gradient=_array(message.gradient),
        noise_variance=(
            _array(diagnostics.noise_variance) if diagnostics.HasField("noise_variance") else None
        ),
        variance_estimator=_name(
            pb.VarianceEstimator, "VARIANCE_ESTIMATOR_", diagnostics.variance_estimator
        ),
        effective_sample_size=_array(diagnostics.effective_sample_size),
        seed=message.seed,
        sampler=(
            _name(sampling_pb2.TimestepSampler, "TIMESTEP_SAMPLER_", used.timestep_sampler)
            if drawn
            else None
        ),
        proposal=_name(sampling_pb2.Proposal, "PROPOSAL_", used.proposal) if drawn else None,
        coupling=(
            _name(sampling_pb2.NoiseCoupling, "NOISE_COUPLING_", used.noise_coupling)
            if drawn
            else None
        ),
        draws_spent=message.draws_spent,
        evaluations_spent=message.evaluations_spent,
        teacher_digest=message.teacher_digest,
        queue_seconds=timings.queue_seconds,
        compute_seconds=timings.compute_seconds,
        total_seconds=timings.total_seconds,
        draws=(
            DrawTable(
                timesteps=_array(table.timesteps),
                noise_indices=_array(table.noise_indices),
                signs=_array(table.signs),
                importance_weights=_array(table.importance_weights),
                norms=_array(table.norms) if table.HasField("norms") else None,
                control_coefficients=(
                    _array(table.control_coefficients)
                    if table.HasField("control_coefficients")
                    else None
                ),
            )
            if message.HasField("draw_table")
            else None
        ),
        half_estimates=(
            _array(message.half_estimates) if message.HasField("half_estimates") else None
        ),
        past_draws=diagnostics.past_draws,
        history=used.history if drawn else None,
        control_variate=(
            _name(sampling_pb2.ControlVariate, "CONTROL_VARIATE_", used.control_variate)
            if drawn
            else None
        ),
    )


def refined(message: teacher_service_pb2.RefineGradientResponse) -> RefinedEstimate:
    """Decode a running mean."""
    pb = teacher_service_pb2
    used, timings = message.sampling, message.timings
    going = pb.STOP_REASON_UNSPECIFIED
    return RefinedEstimate(
        gradient=_array(message.gradient),
        noise_variance=_array(message.noise_variance)
        if message.HasField("noise_variance")
        else None,
        variance_estimator=_name(
            pb.VarianceEstimator, "VARIANCE_ESTIMATOR_", message.variance_estimator
        ),
        relative_standard_error=_array(message.relative_standard_error).astype(float),
        draws=_array(message.draws),
        stop_reasons=tuple(
            None if reason == going else _name(pb.StopReason, "STOP_REASON_", reason)
            for reason in message.stop_reasons
        ),
        final=message.final,
        seed=message.seed,
        sampler=_name(sampling_pb2.TimestepSampler, "TIMESTEP_SAMPLER_", used.timestep_sampler),
        proposal=_name(sampling_pb2.Proposal, "PROPOSAL_", used.proposal),
        coupling=_name(sampling_pb2.NoiseCoupling, "NOISE_COUPLING_", used.noise_coupling),
        control_variate=_name(
            sampling_pb2.ControlVariate, "CONTROL_VARIATE_", used.control_variate
        ),
        history=used.history,
        draws_spent=message.draws_spent,
        evaluations_spent=message.evaluations_spent,
        teacher_digest=message.teacher_digest,
        queue_seconds=timings.queue_seconds,
        compute_seconds=timings.compute_seconds,
        total_seconds=timings.total_seconds,
    )


def noise_prediction(message: teacher_service_pb2.PredictNoiseResponse) -> NoisePrediction:
    """Decode raw noise predictions."""
    return NoisePrediction(
        noise=_array(message.noise_prediction),
        seed=message.seed,
        draws_spent=message.draws_spent,
        evaluations_spent=message.evaluations_spent,
        teacher_digest=message.teacher_digest,
        queue_seconds=message.timings.queue_seconds,
        compute_seconds=message.timings.compute_seconds,
        total_seconds=message.timings.total_seconds,
    )


def profile(message: teacher_service_pb2.Profile) -> TeacherProfile:
    """Decode a profile."""
    return TeacherProfile(
        bins=tuple(
            ProfileBin(
                first_timestep=each.first_timestep,
                last_timestep=each.last_timestep,
                log_snr=each.log_snr,
                prior_mass=each.prior_mass,
                second_moment=each.second_moment,
                second_moment_error=each.second_moment_error,
                squared_mean=each.squared_mean,
                even_second_moment=each.even_second_moment,
                noise_slope=each.noise_slope,
            )
            for each in message.bins
        ),
        prior=frozen(message.prior),
        weight=frozen(message.weight),
        adaptive=frozen(message.adaptive) if message.adaptive else None,
        oracle=frozen(message.oracle),
        past_draws=message.past_draws,
        prior_variance=message.prior_variance,
        weight_variance=message.weight_variance,
        oracle_variance=message.oracle_variance,
        squared_gradient=message.squared_gradient,
        evaluation_seconds=message.evaluation_seconds,
        teacher_digest=message.teacher_digest,
        seed=message.seed,
        draws_spent=message.draws_spent,
        evaluations_spent=message.evaluations_spent,
    )


def _expire_time(message: conditioning_pb2.Conditioning | latents_pb2.Latents) -> datetime | None:
    if not message.HasField("expire_time"):
        return None
    return message.expire_time.ToDatetime(tzinfo=UTC)


def _array(message: Any) -> Any:
    """Decoded and writable, so that torch can share its memory without a warning."""
    return decode_tensor(message).copy()


def _name(wrapper: Any, prefix: str, value: int) -> str:
    """An enum's name in lower case; its number where a newer server uses one unknown here."""
    if value not in wrapper.values():
        return str(value)
    return wrapper.Name(value).removeprefix(prefix).lower()
