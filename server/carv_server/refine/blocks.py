"""Plans, submits and reduces the blocks of one request's renders."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_server.replicas.protocol import Work
from carv_server.request import RefineRequest
from carv_server.rows import make_work, planned_order
from carv_server.sampling.plan import DrawPlan, Resolved, plan_draws
from carv_server.sampling.reduce import Moments, estimate_from_moments
from carv_server.sampling.streams import Block
from carv_server.sampling.timesteps import TimestepSampler
from carv_server.scheduling.job import JobResult

__all__ = ["OWN_STRATA", "BlockEvaluator", "Submit"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Submit = Callable[[Work], Awaitable[JobResult]]

_KEPT_PLANS = 16
# Samplers that give each draw of a render a stratum of its own: draws of one number are twins.
OWN_STRATA = (TimestepSampler.STRATIFIED, TimestepSampler.NESTED)


class BlockEvaluator:
    """Plans and evaluates blocks of one request's renders, and keeps account of them.

    Args:
        submit: as ``Scheduler.submit`` with the terms filled in.
    """

    def __init__(self, request: RefineRequest, resolved: Resolved, submit: Submit) -> None:
        self._request = request
        self._resolved = resolved
        self._submit = submit
        self._plans: dict[tuple[int, int], DrawPlan] = {}
        self._timesteps: list[Int64Array] = []
        self._residuals: list[Float64Array] = []
        self.draws_spent = 0
        self.queue_seconds = math.inf
        self.compute_seconds = 0.0

    async def evaluate(
        self, render: int, number: int, streams: Sequence[int], draws: int
    ) -> list[Block]:
        """One block of each of the streams, which are one or both."""
        plans = [self._plan(2 * number + stream, draws) for stream in streams]
        work = self._work(render, plans)
        result = await self._submit(work)
        reduction, residuals = result.reduction, result.residuals
        assert reduction is not None and residuals is not None
        self._timesteps.append(work.timesteps)
        self._residuals.append(residuals)
        self.draws_spent += len(work.timesteps)
        self.queue_seconds = min(self.queue_seconds, result.queue_seconds)
        self.compute_seconds += result.compute_seconds
        # Three draws as an antithetic pair and a single have no unbiased estimator.
        conservative = not plans[0].identically_distributed or (
            draws == 3 and len(np.unique(plans[0].groups[render])) == 2
        )
        twin = math.nan
        if len(plans) == 2 and self._resolved.sampler in OWN_STRATA:
            twin = reduction.twins[render] / draws**2
        blocks: list[Block] = []
        for position in range(len(plans)):
            owner = render if len(plans) == 1 else 2 * render + position
            by_size: dict[int, Moments] = {
                size: moments for (key, size), moments in reduction.moments.items() if key == owner
            }
            mean, variance = estimate_from_moments(by_size, draws, reduction.spreads.get(owner))
            blocks.append(Block(draws, mean.numpy(), variance, conservative, twin))
        return blocks

    def record(self) -> tuple[Int64Array, Float64Array]:
        """Timesteps int64 [n] and residuals float64 [n, 3] of all draws."""
        if not self._timesteps:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 3))
        return np.concatenate(self._timesteps), np.concatenate(self._residuals)

    def _plan(self, stream: int, draws: int) -> DrawPlan:
        """That of all renders, from which each takes its row: under ``nested`` the blocks of one
        number are stratified over the request too."""
        key = (stream, draws)
        if key not in self._plans:
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
            request = self._request
            self._plans[key] = plan_draws(
                self._resolved, request.objective, len(request.latents), draws, request.seed, stream
            )
        return self._plans[key]

    def _work(self, render: int, plans: Sequence[DrawPlan]) -> Work:
        request = self._request
        plan = _row_of(plans, render)
        work = make_work(
            plan,
            request.latents[render : render + 1],
            None,
            request.branches,
            request.objective,
            request.seed,
        )
        draws = plans[0].draws
        streams = planned_order(plan) // draws if len(plans) == 2 else None
        return replace(
            work,
            latents=request.latents,
            reference_latents=request.reference_latents,
            renders=np.full_like(work.renders, render),
            streams=streams,
        )


def _row_of(plans: Sequence[DrawPlan], render: int) -> DrawPlan:
    """One render's draws of all plans, side by side, [1, K]."""

    def row(values: Callable[[DrawPlan], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([values(plan)[render] for plan in plans])[np.newaxis]

    return DrawPlan(
        timesteps=row(lambda plan: plan.timesteps),
        noise_indices=row(lambda plan: plan.noise_indices),
        signs=row(lambda plan: plan.signs),
        importance_weights=row(lambda plan: plan.importance_weights),
        control_coefficients=row(lambda plan: plan.control_coefficients),
        groups=row(lambda plan: plan.groups),
        cells=row(lambda plan: plan.cells),
        identically_distributed=plans[0].identically_distributed,
    )
