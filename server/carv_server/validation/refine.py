"""RefineGradient messages to checked requests."""

from __future__ import annotations

import math

from carv.v1 import teacher_service_pb2 as pb
from carv_server.request import RefineRequest
from carv_server.validation.checks import Violations
from carv_server.validation.draws import check_choices, check_weighting
from carv_server.validation.subject import RequestContext, check_reply, check_subject, seed_of

__all__ = ["check_refine"]

# Float32 gradients are not known to less.
_LEAST_TARGET, _LARGEST_TARGET = 1e-6, 1e3
_FLOAT32_BYTES = 4
# Noise indices and jitter of every block are streams of the seed, of which there are 4096.
_MOST_DRAWS = 1 << 19


def check_refine(message: pb.RefineGradientRequest, context: RequestContext) -> RefineRequest:
    """Raises RequestError: INVALID_FIELD with all violations, then LATENTS_NOT_FOUND or
    CONDITIONING_NOT_FOUND, then MESSAGE_TOO_LARGE.

    The draws of a render have no limit of their own: a call may spend ``max_evaluations`` over
    its renders and branches, and each render its share of that at most.
    """
    violations = Violations()
    limits = context.limits
    subject = check_subject(message, context, violations)
    latents, objective = subject.latents, subject.objective
    sampling, history = check_choices(message.sampling, limits, violations)
    if message.sampling.draws != 0:
        violations.add("sampling.draws", f"{message.sampling.draws}; must be left out")
    if objective is not None and sampling is not None:
        check_weighting(sampling, objective, violations)
    target, seconds = message.target_relative_standard_error, message.max_seconds
    if not (target == 0.0 or _LEAST_TARGET <= target <= _LARGEST_TARGET):
        violations.add(
            "target_relative_standard_error",
            f"{target}; must be 0 or in {_LEAST_TARGET:g} .. {_LARGEST_TARGET:g}",
        )
    if not (seconds >= 0.0 and math.isfinite(seconds)):
        violations.add("max_seconds", f"{seconds}; must be finite and at least 0")
    if target == 0.0 and message.max_draws == 0 and seconds == 0.0:
        violations.add(
            "target_relative_standard_error",
            "nothing ends this call: set it, max_draws or max_seconds",
        )
    most = limits.max_evaluations
    if latents is not None:
        most //= len(latents) * max(1, len(subject.branches))
    most = min(most, _MOST_DRAWS)
    if latents is not None and most < 1:
        violations.add(
            "latents.shape",
            f"{len(latents)} renders x {len(subject.branches)} branches; the limit of evaluations "
            f"is {limits.max_evaluations}",
        )
    if not 0 <= message.max_draws <= most:
        violations.add(
            "max_draws",
            f"{message.max_draws}; must be in 0 .. {most}, since the limit of evaluations (renders "
            f"x draws x branches) is {limits.max_evaluations}",
        )
    violations.raise_if_any()
    subject.handles.raise_if_gone()
    assert latents is not None and objective is not None and sampling is not None
    check_reply(latents.size * _FLOAT32_BYTES, context)
    return RefineRequest(
        latents=latents,
        reference_latents=subject.reference_latents,
        branches=subject.branches,
        objective=objective,
        sampling=sampling,
        history=history,
        seed=seed_of(message, context),
        target=target,
        max_draws=message.max_draws or most,
        max_seconds=seconds or None,
    )
