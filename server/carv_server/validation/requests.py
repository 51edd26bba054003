"""EstimateGradient and PredictNoise messages to checked requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from carv.errors import FieldViolation, Reason
from carv.v1 import teacher_service_pb2 as pb
from carv.v1 import tensor_pb2
from carv_server.errors import RequestError, handles_gone
from carv_server.replicas.protocol import Branch, Conditioning
from carv_server.request import DrawSpec, EstimateRequest, PredictRequest, RequestLimits
from carv_server.sampling.plan import DrawPlan
from carv_server.teachers.protocol import TeacherDescription
from carv_server.validation.checks import FLOAT32_MAX, Float32Array, Violations, check_latents
from carv_server.validation.draws import check_explicit_draws, check_sampling, check_weighting
from carv_server.validation.objective import check_objective

__all__ = ["RequestContext", "check_estimate", "check_predict"]

_FLOAT32_BYTES = 4
_DRAW_TABLE_BYTES = 8 + 8 + 4 + 4 + 4 + 4
_REPLY_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class RequestContext:
    """What a check needs beside the message.

    Attributes:
        resolve: handle to conditioning of this teacher, or None.
        new_seed: a seed for requests that give none.
        max_message_bytes: bound on the reply.
    """

    teacher: TeacherDescription
    limits: RequestLimits
    max_message_bytes: int
    resolve: Callable[[str], Conditioning | None]
    new_seed: Callable[[], int]


class _Handles:
    """Resolves handles, remembering those that are gone: they are NOT_FOUND, not violations,
    and only once the rest of the request holds."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._gone: dict[str, str] = {}

    def branch(
        self,
        handles: Sequence[str],
        field: str,
        renders: int | None,
        use_reference: bool,
        violations: Violations,
    ) -> Branch:
        if renders is None:  # the latents are at fault
            most = self._context.limits.max_renders
            allowed, wanted = range(1, most + 1), f"1 .. {most}"
        else:
            allowed, wanted = (1, renders), "1" if renders == 1 else f"1 or {renders}"
        if len(handles) not in allowed:
            violations.add(field, f"{len(handles)} handles; there must be {wanted}")
            return Branch((), use_reference)
        found: list[Conditioning] = []
        for i, handle in enumerate(handles):
            conditioning = self._context.resolve(handle)
            if conditioning is None:
                self._gone[f"{field}[{i}]"] = handle
            else:
                found.append(conditioning)
        if len({c.signature for c in found}) > 1:
            violations.add(field, "these conditionings differ in their tensors' shapes")
        return Branch(found, use_reference)

    def raise_if_gone(self) -> None:
        if self._gone:
            raise handles_gone(self._gone)


def check_estimate(message: pb.EstimateGradientRequest, context: RequestContext) -> EstimateRequest:
    """Raises RequestError: INVALID_FIELD with all violations, then MESSAGE_TOO_LARGE, then
    CONDITIONING_NOT_FOUND."""
    violations = Violations()
    description, limits = context.teacher, context.limits
    timesteps = len(description.schedule)
    latents = _latents(message.latents, message.HasField("latents"), "latents", context, violations)
    renders = None if latents is None else len(latents)
    objective = check_objective(
        message.objective, description.schedule, limits.max_branches, violations
    )
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
                message.explicit_draws, renders, timesteps, limits, violations
            )
            if message.return_half_estimates:
                violations.add("return_half_estimates", "explicit draws have no halves")
        case _:
            violations.add("draws", "set sampling or explicit_draws")
    reference = _reference(message, latents, context, violations)
    handles = _Handles(context)
    branches = [
        handles.branch(
            branch.conditionings,
            f"objective.branches[{i}].conditionings",
            renders,
            branch.use_reference_latents,
            violations,
        )
        for i, branch in enumerate(message.objective.branches[: limits.max_branches])
    ]
    signatures = {c.signature for b in branches for c in b.conditionings}
    if len(signatures) > 1 and not violations:
        violations.add("objective.branches", "conditionings differ in their tensors' shapes")
    if latents is not None and draws is not None:
        field = f"{message.WhichOneof('draws')}"
        _check_evaluations(len(latents) * draws.draws * len(branches), field, limits, violations)
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
    assert latents is not None and objective is not None and draws is not None
    gradients = 3 if message.return_half_estimates else 1
    reply = gradients * latents.size * _FLOAT32_BYTES
    if message.return_draws:
        reply += len(latents) * draws.draws * _DRAW_TABLE_BYTES
    _check_reply(reply, context)
    handles.raise_if_gone()
    return EstimateRequest(
        latents=latents,
        reference_latents=reference,
        branches=branches,
        objective=objective,
        draws=draws,
        seed=message.seed if message.HasField("seed") else context.new_seed(),
        return_draws=message.return_draws,
    )


def check_predict(message: pb.PredictNoiseRequest, context: RequestContext) -> PredictRequest:
    """Raises RequestError as ``check_estimate``."""
    violations = Violations()
    field = message.WhichOneof("input")
    noisy = field == "noisy_latents"
    if field is None:
        violations.add("input", "set latents or noisy_latents")
    source = message.noisy_latents if noisy else message.latents
    latents = _latents(source, True, field, context, violations) if field else None
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
    handles = _Handles(context)
    branch = handles.branch(message.conditionings, "conditionings", renders, False, violations)
    if latents is not None and plan is not None:
        _check_evaluations(len(latents) * plan.draws, "explicit_draws", context.limits, violations)
    violations.raise_if_any()
    assert latents is not None and plan is not None
    _check_reply(latents.size * plan.draws * _FLOAT32_BYTES, context)
    handles.raise_if_gone()
    seed = message.seed if message.HasField("seed") else context.new_seed()
    return PredictRequest(latents, noisy, branch, plan, seed)


def _latents(
    message: tensor_pb2.Tensor,
    present: bool,
    field: str,
    context: RequestContext,
    violations: Violations,
) -> Float32Array | None:
    if not present:
        violations.add(field, "must be set")
        return None
    return check_latents(
        message, field, context.teacher.event_shape, context.limits.max_renders, violations
    )


def _reference(
    message: pb.EstimateGradientRequest,
    latents: Float32Array | None,
    context: RequestContext,
    violations: Violations,
) -> Float32Array | None:
    field = "objective.reference_latents"
    present = message.objective.HasField("reference_latents")
    used = [i for i, b in enumerate(message.objective.branches) if b.use_reference_latents]
    if not present:
        if used:
            violations.add(field, f"must be set, since branch {used[0]} uses it")
        return None
    if not used:
        violations.add(field, "set, but no branch uses it")
    reference = _latents(message.objective.reference_latents, True, field, context, violations)
    if reference is not None and latents is not None and reference.shape != latents.shape:
        violations.add(
            f"{field}.shape", f"{list(reference.shape)}; the latents are {list(latents.shape)}"
        )
    return reference


def _check_evaluations(
    evaluations: int, field: str, limits: RequestLimits, violations: Violations
) -> None:
    if evaluations > limits.max_evaluations:
        violations.add(
            field,
            f"{evaluations} evaluations (renders x draws x branches); the limit is "
            f"{limits.max_evaluations}",
        )


def _check_reply(size: int, context: RequestContext) -> None:
    if size + _REPLY_OVERHEAD_BYTES > context.max_message_bytes:
        raise RequestError(
            Reason.MESSAGE_TOO_LARGE,
            f"the reply would hold {size} bytes; the message limit is "
            f"{context.max_message_bytes}: send fewer renders or draws at once",
            violations=[
                FieldViolation("latents", f"the reply holds {size} bytes for these renders")
            ],
        )
