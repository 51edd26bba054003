"""ProfileTeacher messages to checked requests."""

from __future__ import annotations

from carv.v1 import teacher_service_pb2 as pb
from carv_server.request import ProfileRequest
from carv_server.sampling.proposals import weight_table
from carv_server.validation.checks import Violations
from carv_server.validation.subject import (
    RequestContext,
    check_evaluations,
    check_subject,
    seed_of,
)

__all__ = ["check_profile"]

_DEFAULT_BINS, _BINS = 24, (2, 64)
_DEFAULT_DRAWS, _DRAWS = 8, (2, 1024)


def check_profile(message: pb.ProfileTeacherRequest, context: RequestContext) -> ProfileRequest:
    """Raises RequestError: INVALID_FIELD with all violations, then LATENTS_NOT_FOUND or
    CONDITIONING_NOT_FOUND."""
    violations = Violations()
    subject = check_subject(message, context, violations)
    latents, objective = subject.latents, subject.objective
    bins = _in_range(message.bins, "bins", _DEFAULT_BINS, _BINS, violations)
    draws = _in_range(message.draws_per_bin, "draws_per_bin", _DEFAULT_DRAWS, _DRAWS, violations)
    if draws is not None and draws % 2:
        violations.add("draws_per_bin", f"{draws}; must be even, since draws come in pairs")
        draws = None
    most = context.limits.max_history_characters
    if len(message.history) > most:
        violations.add("history", f"{len(message.history)} characters; the limit is {most}")
    if objective is not None and weight_table(objective) is None:
        violations.add("objective.weighting", "the weighting is zero wherever the prior is not")
    if bins is not None and draws is not None and latents is not None:
        field = "draws_per_bin" if message.draws_per_bin else "bins"
        evaluations = len(latents) * bins * draws * len(subject.branches)
        check_evaluations(evaluations, field, context.limits, violations)
    violations.raise_if_any()
    subject.handles.raise_if_gone()
    assert latents is not None and objective is not None
    assert bins is not None and draws is not None
    return ProfileRequest(
        latents=latents,
        reference_latents=subject.reference_latents,
        branches=subject.branches,
        objective=objective,
        bins=bins,
        draws_per_bin=draws,
        seed=seed_of(message, context),
        history=message.history,
        warm=message.warm,
    )


def _in_range(
    value: int, field: str, default: int, bounds: tuple[int, int], violations: Violations
) -> int | None:
    """The value, ``default`` for zero, or None with a violation."""
    low, high = bounds
    value = value or default
    if low <= value <= high:
        return value
    violations.add(field, f"{value}; must be in {low} .. {high}")
    return None
