"""What a gradient is asked of: latents, objective, conditionings; the same in every request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from carv.errors import FieldViolation, Reason
from carv.v1 import objective_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.errors import RequestError, handles_gone
from carv_server.replicas.protocol import Branch, Conditioning
from carv_server.request import RequestLimits
from carv_server.sampling.objective import ObjectiveTables
from carv_server.scheduling.terms import MAX_PRIORITY, MIN_PRIORITY
from carv_server.teachers.protocol import TeacherDescription
from carv_server.validation.checks import Float32Array, Violations, check_latents
from carv_server.validation.known import KnownRequests
from carv_server.validation.objective import ObjectiveCache

__all__ = [
    "Handles",
    "RequestContext",
    "Subject",
    "SubjectMessage",
    "check_evaluations",
    "check_priority",
    "check_reply",
    "check_subject",
    "checked_latents",
    "seed_of",
]

_REPLY_OVERHEAD_BYTES = 64 * 1024

SubjectMessage = pb.EstimateGradientRequest | pb.RefineGradientRequest | pb.ProfileTeacherRequest
"""Requests with latents and an ``objective``."""


@dataclass(frozen=True)
class RequestContext:
    """What a check needs beside the message.

    Attributes:
        resolve: handle to conditioning of this teacher, or None.
        resolve_latents: handle to float32 [R, *event_shape] kept for this teacher, or None.
        objectives, known: of this teacher.
        new_seed: a seed for requests that give none.
        max_message_bytes: bound on the reply.
    """

    teacher: TeacherDescription
    limits: RequestLimits
    max_message_bytes: int
    resolve: Callable[[str], Conditioning | None]
    resolve_latents: Callable[[str], Float32Array | None]
    objectives: ObjectiveCache
    known: KnownRequests
    new_seed: Callable[[], int]


class Handles:
    """Resolves handles, remembering those that are gone: they are NOT_FOUND, not violations,
    and only once the rest of the request holds."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._gone: dict[str, str] = {}
        self._gone_latents: dict[str, str] = {}

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

    def latents(self, handle: str, field: str) -> Float32Array | None:
        """Latents that are kept; they were checked when they came."""
        found = self._context.resolve_latents(handle)
        if found is None:
            self._gone_latents[field] = handle
        return found

    def raise_if_gone(self) -> None:
        if self._gone or self._gone_latents:
            raise handles_gone(self._gone, self._gone_latents)


@dataclass(frozen=True)
class Subject:
    """The parts that were sound; None for those with violations, or whose handle is gone.

    Attributes:
        latents, reference_latents: float32 [R, *event_shape].
        branches: as many as were asked for, up to the limit; whole once there is no violation
            and ``handles.raise_if_gone`` has passed.
    """

    latents: Float32Array | None
    reference_latents: Float32Array | None
    objective: ObjectiveTables | None
    branches: Sequence[Branch]
    handles: Handles

    @property
    def renders(self) -> int | None:
        """R."""
        return None if self.latents is None else len(self.latents)


def check_subject(
    message: SubjectMessage, context: RequestContext, violations: Violations
) -> Subject:
    """Latents, reference latents, objective and conditionings, with their violations."""
    limits = context.limits
    check_priority(message.priority, violations)
    handles = Handles(context)
    latents = checked_latents(message, message.WhichOneof("subject"), handles, context, violations)
    renders = None if latents is None else len(latents)
    objective = context.objectives.check(
        message.objective, context.teacher.schedule, limits.max_branches, violations
    )
    reference = _reference(message, latents, handles, context, violations)
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
    return Subject(latents, reference, objective, branches, handles)


def checked_latents(
    message: SubjectMessage | pb.PredictNoiseRequest | objective_pb2.Objective,
    name: str | None,
    handles: Handles,
    context: RequestContext,
    violations: Violations,
    prefix: str = "",
) -> Float32Array | None:
    """Latents by value or by handle: whichever field of the message is set.

    Args:
        name: of the field that is set; None: of none, which is a violation.
        prefix: of the field, in violations.
    """
    if name is None:
        violations.add(f"{prefix}latents", "must be set, or latents_handle")
        return None
    if name.endswith("_handle"):
        return handles.latents(getattr(message, name), prefix + name)
    return check_latents(
        getattr(message, name),
        prefix + name,
        context.teacher.event_shape,
        context.limits.max_renders,
        violations,
    )


def _reference(
    message: SubjectMessage,
    latents: Float32Array | None,
    handles: Handles,
    context: RequestContext,
    violations: Violations,
) -> Float32Array | None:
    field = "objective.reference_latents"
    name = message.objective.WhichOneof("reference")
    used = [i for i, b in enumerate(message.objective.branches) if b.use_reference_latents]
    if name is None:
        if used:
            violations.add(field, f"must be set, since branch {used[0]} uses it")
        return None
    if not used:
        violations.add(field, "set, but no branch uses it")
    reference = checked_latents(message.objective, name, handles, context, violations, "objective.")
    if reference is not None and latents is not None and reference.shape != latents.shape:
        violations.add(
            f"objective.{name}.shape",
            f"{list(reference.shape)}; the latents are {list(latents.shape)}",
        )
    return reference


def seed_of(message: SubjectMessage | pb.PredictNoiseRequest, context: RequestContext) -> int:
    """The request's own, or a fresh one."""
    return message.seed if message.HasField("seed") else context.new_seed()


def check_evaluations(
    evaluations: int, field: str, limits: RequestLimits, violations: Violations
) -> None:
    if evaluations > limits.max_evaluations:
        violations.add(
            field,
            f"{evaluations} evaluations (renders x draws x branches); the limit is "
            f"{limits.max_evaluations}",
        )


def check_priority(priority: int, violations: Violations) -> None:
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        violations.add("priority", f"{priority}; must be in {MIN_PRIORITY} .. {MAX_PRIORITY}")


def check_reply(size: int, context: RequestContext) -> None:
    if size + _REPLY_OVERHEAD_BYTES > context.max_message_bytes:
        raise RequestError(
            Reason.MESSAGE_TOO_LARGE,
            f"the reply would hold {size} bytes; the message limit is "
            f"{context.max_message_bytes}: send fewer renders or draws at once",
            violations=[
                FieldViolation("latents", f"the reply holds {size} bytes for these renders")
            ],
        )
