"""EstimateGradient and PredictNoise messages to checked requests."""

from __future__ import annotations

from carv.v1 import teacher_service_pb2 as pb
from carv_server.replicas.protocol import Branch
from carv_server.request import DrawSpec, EstimateRequest, PredictRequest
from carv_server.sampling.plan import DrawPlan
from carv_server.validation.checks import FLOAT32_MAX, Violations
from carv_server.validation.draws import check_explicit_draws, check_sampling, check_weighting
from carv_server.validation.known import Known, key_of
from carv_server.validation.subject import (
    Handles,
    RequestContext,
    check_evaluations,
    check_priority,
    check_reply,
    check_subject,
    checked_latents,
    seed_of,
)

__all__ = ["check_estimate", "check_predict"]

_FLOAT32_BYTES = 4
_DRAW_TABLE_BYTES = 8 + 8 + 4 + 4 + 4 + 4


def check_estimate(message: pb.EstimateGradientRequest, context: RequestContext) -> EstimateRequest:
    """Raises RequestError: INVALID_FIELD with all violations, then LATENTS_NOT_FOUND or
    CONDITIONING_NOT_FOUND, then MESSAGE_TOO_LARGE."""
    key = key_of(message)
    known = None if key is None else context.known.get(key)
    checked = None if known is None else _like(known, message, context)
    if checked is None:
        checked = _checked_in_full(message, context)
        if key is not None:
            context.known.put(key, message, checked)
    return checked


def _like(
    known: Known, message: pb.EstimateGradientRequest, context: RequestContext
) -> EstimateRequest | None:
    """A request that has all but latents and seed of one that was sound; None where it is not
    sound itself, or of other latents."""
    violations, handles = Violations(), Handles(context)
    latents = checked_latents(message, message.WhichOneof("subject"), handles, context, violations)
    if latents is None or len(latents) != known.renders:
        return None
    branches: list[Branch] = []
    for named in known.handles:
        found = [each for handle in named if (each := context.resolve(handle)) is not None]
        if len(found) < len(named):
            return None
        branches.append(Branch(found))
    return EstimateRequest(
        latents=latents,
        reference_latents=None,
        branches=branches,
        objective=known.objective,
        draws=known.draws,
        seed=seed_of(message, context),
        return_draws=message.return_draws,
    )


def _checked_in_full(
    message: pb.EstimateGradientRequest, context: RequestContext
) -> EstimateRequest:
    violations = Violations()
    limits = context.limits
    timesteps = len(context.teacher.schedule)
    subject = check_subject(message, context, violations)
    latents, objective, branches = subject.latents, subject.objective, subject.branches
    draws: DrawSpec | DrawPlan | None = None
    match message.WhichOneof("draws"):
        case "sampling":
            draws = check_sampling(
                message.sampling,
                limits,
                violations,
                half_estimates=message.return_half_estimates,
            )
        case "explicit_draws":
            draws = check_explicit_draws(
                message.explicit_draws, subject.renders, timesteps, limits, violations
            )
            if message.return_half_estimates:
                violations.add("return_half_estimates", "explicit draws have no halves")
        case _:
            violations.add("draws", "set sampling or explicit_draws")
    if latents is not None and draws is not None:
        field = f"{message.WhichOneof('draws')}"
        check_evaluations(len(latents) * draws.draws * len(branches), field, limits, violations)
    if objective is not None and isinstance(draws, DrawSpec):
        check_weighting(draws.sampling, objective, violations)
    if objective is not None and isinstance(draws, DrawPlan):
        used = objective.weighting[draws.timesteps]
        if not abs(used).max() < float("inf"):
            violations.add("objective.weighting", "infinite at one of the explicit timesteps")
        elif not abs(used * draws.importance_weights).max() <= FLOAT32_MAX:
            violations.add(
                "explicit_draws.importance_weights", "times the weighting they overflow float32"
            )
    violations.raise_if_any()
    subject.handles.raise_if_gone()
    assert latents is not None and objective is not None and draws is not None
    gradients = 3 if message.return_half_estimates else 1
    reply = gradients * latents.size * _FLOAT32_BYTES
    if message.return_draws:
        reply += len(latents) * draws.draws * _DRAW_TABLE_BYTES
    check_reply(reply, context)
    return EstimateRequest(
        latents=latents,
        reference_latents=subject.reference_latents,
        branches=branches,
        objective=objective,
        draws=draws,
        seed=seed_of(message, context),
        return_draws=message.return_draws,
    )


def check_predict(message: pb.PredictNoiseRequest, context: RequestContext) -> PredictRequest:
    """Raises RequestError as ``check_estimate``."""
    violations = Violations()
    check_priority(message.priority, violations)
    field = message.WhichOneof("input")
    noisy = field == "noisy_latents"
    handles = Handles(context)
    latents = None
    if field is None:
        violations.add("input", "set latents, latents_handle or noisy_latents")
    else:
        latents = checked_latents(message, field, handles, context, violations)
    renders = None if latents is None else len(latents)
    plan = None
    if message.HasField("explicit_draws"):
        plan = check_explicit_draws(
            message.explicit_draws,
            renders,
            len(context.teacher.schedule),
            context.limits,
            violations,
            timesteps_only=noisy,
        )
    else:
        violations.add("explicit_draws", "must be set")
    branch = handles.branch(message.conditionings, "conditionings", renders, False, violations)
    if latents is not None and plan is not None:
        check_evaluations(len(latents) * plan.draws, "explicit_draws", context.limits, violations)
    violations.raise_if_any()
    handles.raise_if_gone()
    assert latents is not None and plan is not None
    check_reply(latents.size * plan.draws * _FLOAT32_BYTES, context)
    return PredictRequest(latents, noisy, branch, plan, seed_of(message, context))
