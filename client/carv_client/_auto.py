"""Estimates with as many draws as a planner chooses: ``draws="auto"``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from carv.v1 import teacher_service_pb2 as pb
from carv_client import _requests
from carv_client._errors import CarvError, invalid
from carv_client._transport import Deadline
from carv_client._types import Draws, Estimate, Teacher
from carv_client.planner import BASELINE_OPTIONS, DrawPlanner

__all__ = ["estimate_planned", "fixed_draws"]

Ask = Callable[[pb.EstimateGradientRequest, Deadline], Awaitable[Estimate]]

_SHARE = 0.25
"""Of the time left to the call, what a baseline probe may take."""
_TIMES = 3.0
"""Of what the estimate took, the same by its draws."""
_LEAST_SECONDS = 0.25
"""A probe is given so long, within its share, however quick the estimate was: times vary."""


def fixed_draws(draws: Draws, planner: DrawPlanner | None, explicit: bool) -> int | None:
    """K, or None where it is for a planner to choose."""
    if draws == "auto":
        return 0 if explicit else None
    if isinstance(draws, str):
        raise invalid("draws", f'{draws!r} is neither a number nor "auto"')
    if planner is not None:
        raise invalid("planner", 'chooses with draws="auto" alone')
    return draws


async def estimate_planned(
    ask: Ask,
    request: pb.EstimateGradientRequest,
    planner: DrawPlanner,
    teacher: Teacher,
    deadline: Deadline,
    *,
    renders: int,
    overlapping: bool,
) -> Estimate:
    """Fill in K, ask, and let the planner learn from the answer.

    A baseline probe that fails or takes long is done without: the gradient is at hand by then.

    Args:
        renders: R.
        overlapping: the caller works meanwhile: that is upstream work, and no waiting.
    """
    branches = len(request.objective.branches)
    choice = planner.choose(
        renders,
        branches,
        teacher.limits,
        teacher.evaluation_seconds,
        half_estimates=request.return_half_estimates,
    )
    request.sampling.draws = choice.draws
    request.return_half_estimates = choice.half_estimates
    request.return_draws = True  # the norms of the draws say what a uniform draw varies
    baseline = None
    with contextlib.nullcontext() if overlapping else planner.waiting():
        clock = asyncio.get_running_loop().time
        start = clock()
        estimate = await ask(request, deadline)
        if choice.baseline:
            patience = _patience(clock() - start, choice.draws, deadline.remaining())
            with contextlib.suppress(CarvError):
                baseline = await ask(_baseline(request), Deadline.after(patience))
    planner.observe(estimate)
    if baseline is not None:
        planner.attach_baseline(estimate, baseline)
    return estimate


def _patience(seconds: float, draws: int, left: float | None) -> float:
    """Seconds for a baseline probe, after an estimate that took ``seconds`` for its draws."""
    scale = max(1.0, BASELINE_OPTIONS["draws"] / draws)
    patience = max(_LEAST_SECONDS, _TIMES * scale * seconds)
    return patience if left is None else min(patience, _SHARE * left)


def _baseline(request: pb.EstimateGradientRequest) -> pb.EstimateGradientRequest:
    """The same with independent uniform draws."""
    options = BASELINE_OPTIONS
    probe = pb.EstimateGradientRequest()
    probe.CopyFrom(request)
    probe.return_half_estimates, probe.return_draws = True, False
    probe.sampling.CopyFrom(
        _requests.sampling(
            options["draws"],
            options["sampler"],
            options["proposal"],
            options["coupling"],
            options["control_variate"],
            request.sampling.history,
        )
    )
    return probe
