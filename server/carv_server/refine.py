"""Running means until a target error, a draw budget or a time budget.

Each render is refined by itself, all of them at once: the scheduler mixes their blocks. How draws
are cut into streams and blocks, and why the answer is unbiased, is told in
``sampling.refinement``. The proposal rests on past requests alone, read once at the start;
this request's draws are recorded at its end.

A time budget ends a render with the blocks that are done by then. How many these are depends
on the machine and on its load, hence on the values only so far as their number moved the times.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.estimate import VarianceEstimator, make_work, planned_order, together
from carv_server.history import DrawHistories, history_key
from carv_server.job import JobResult
from carv_server.replicas.protocol import Work
from carv_server.request import RefineRequest
from carv_server.sampling.plan import DrawPlan, Resolved, plan_draws, resolve
from carv_server.sampling.reduce import Moments, estimate_from_moments
from carv_server.sampling.refinement import (
    Block,
    Combined,
    Ending,
    StoppingRule,
    Sums,
    combine,
)
from carv_server.sampling.timesteps import TimestepSampler
from carv_server.scheduler import Scheduler

__all__ = [
    "BlockEvaluator",
    "Refined",
    "Refinement",
    "RenderDraws",
    "StopReason",
    "refine_gradient",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Submit = Callable[[Work], Awaitable[JobResult]]

_MESSAGE_SECONDS = 0.1
# Blocks of one call before the scheduler at once: enough to fill microbatches, and few enough
# that a call of many renders does not crowd out the calls of others.
_OUTSTANDING_BLOCKS = 16
_LAST_BLOCKS = 1024  # numbers of the blocks after the last checkpoint, apart from the row's
_KEPT_PLANS = 16
# Samplers that give each draw of a render a stratum of its own: draws of one number are twins.
_OWN_STRATA = (TimestepSampler.STRATIFIED, TimestepSampler.NESTED)


class StopReason(Enum):
    TARGET = "target"
    DRAW_BUDGET = "draw_budget"
    TIME_BUDGET = "time_budget"


@dataclass(frozen=True)
class Refined:
    """Running means of R renders.

    Attributes:
        gradient: float32 [R, *event_shape].
        noise_variance: float64 [R]; None where unavailable.
        relative_standard_error: float64 [R]; infinite where it is not known.
        draws: int64 [R], those in the mean.
        stop_reasons: None for a render that goes on.
        draws_spent: over all renders, with those that decided on an end alone.
    """

    gradient: Float32Array
    noise_variance: Float64Array | None
    variance_estimator: VarianceEstimator
    relative_standard_error: Float64Array
    draws: Int64Array
    stop_reasons: Sequence[StopReason | None]
    final: bool
    sampling: Resolved
    draws_spent: int
    evaluations_spent: int
    queue_seconds: float
    compute_seconds: float


EvaluateBlock = Callable[[int, Sequence[int], int], Coroutine[Any, Any, Sequence[Block]]]
"""(number, streams, draws) to the block of that number of each of the streams."""


class Refinement:
    """One render on its way to its target: drives two streams by a rule.

    Args:
        evaluate: makes a block; a pure function of its arguments but for time. Streams, and
            numbers of one stream, must share no randomness.
        most: draws of the render. One draw is stream 0 alone.
        moved: called whenever ``combined`` has changed.
    """

    def __init__(
        self,
        evaluate: EvaluateBlock,
        *,
        target: float,
        most: int,
        stratified: bool,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._evaluate = evaluate
        self._rule = StoppingRule(target, max(1, most // 2), stratified)
        self._moved = moved
        self._ends: list[Ending | None] = [None, None]
        if most == 1:
            self._ends = [Ending(1, 0, capped=True), Ending(0, 0, capped=True)]
        # By stream: what its mean rests on, and the row past its end, that decides alone.
        self._used = [Sums(), Sums()]
        self._beyond = [Sums(), Sums()]

    @property
    def started(self) -> bool:
        """Whether there is a mean at all."""
        return any(sums.blocks for sums in self._used)

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the streams end; None while that is open."""
        first, second = self._ends
        if first is None or second is None:
            return None
        capped = first.capped or second.capped
        return StopReason.DRAW_BUDGET if capped else StopReason.TARGET

    def used(self) -> tuple[Sums, Sums]:
        """What the mean of each stream rests on; does not change once read."""
        return self._used[0], self._used[1]

    async def run(self) -> Combined:
        """To the end of both streams."""
        stage, number = 0, 0
        while True:
            going = [s for s in (0, 1) if self._goes_on(s, stage)]
            if not going:
                break
            stage += 1
            sizes = self._rule.blocks(
                self._rule.checkpoint(stage) - self._rule.checkpoint(stage - 1)
            )
            places = [self._beyond if self._over(s, stage) else self._used for s in (0, 1)]
            await self._fill(places, going, number, sizes)
            number += len(sizes)
            rows = [used.merged(more) for used, more in zip(self._used, self._beyond, strict=True)]
            for s in (0, 1):
                if self._ends[s] is None:
                    self._ends[s] = self._rule.ending(rows[self._judge(s)], stage)
        await together(
            [
                self._fill([self._used] * 2, [s], _LAST_BLOCKS, self._rule.blocks(end.extra))
                for s, end in enumerate(self._ends)
                if end is not None and end.extra
            ]
        )
        return combine(*self.used())

    def _judge(self, stream: int) -> int:
        """The stream whose blocks say where a stream ends."""
        return 1 - stream

    def _over(self, stream: int, stage: int) -> bool:
        """Whether a stream is known to end before a stage."""
        end = self._ends[stream]
        return end is not None and end.checkpoint < stage

    def _goes_on(self, stream: int, stage: int) -> bool:
        """Whether the stage after one is needed: for the stream itself, or to end the other."""
        if not self._over(stream, stage + 1):
            return True
        # Whatever the last stage would say, the other ends with it.
        other_is_open = self._ends[1 - stream] is None
        return other_is_open and self._rule.checkpoint(stage + 1) < self._rule.most

    async def _fill(
        self, places: Sequence[list[Sums]], streams: Sequence[int], first: int, sizes: Sequence[int]
    ) -> None:
        """Blocks of the streams from number ``first`` on, added where ``places`` says for each."""

        async def one(position: int, draws: int) -> None:
            blocks = await self._evaluate(first + position, streams, draws)
            for stream, block in zip(streams, blocks, strict=True):
                places[stream][stream] = places[stream][stream].plus(block)
            self._moved()

        await together([one(position, draws) for position, draws in enumerate(sizes)])


class BlockEvaluator:
    """Plans and evaluates blocks of one request's renders, and keeps account of them.

    Args:
        submit: as ``Scheduler.submit`` with the deadline filled in.
    """

    def __init__(self, request: RefineRequest, resolved: Resolved, submit: Submit) -> None:
        self._request = request
        self._resolved = resolved
        self._submit = submit
        self._latents = torch.tensor(request.latents)
        reference = request.reference_latents
        self._reference = None if reference is None else torch.tensor(reference)
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
        self._timesteps.append(work.timesteps.numpy())
        self._residuals.append(residuals.numpy())
        self.draws_spent += len(work.timesteps)
        self.queue_seconds = min(self.queue_seconds, result.queue_seconds)
        self.compute_seconds += result.compute_seconds
        # Three draws as an antithetic pair and a single have no unbiased estimator.
        conservative = not plans[0].identically_distributed or (
            draws == 3 and len(np.unique(plans[0].groups[render])) == 2
        )
        twin = math.nan
        if len(plans) == 2 and self._resolved.sampler in _OWN_STRATA:
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
        streams = torch.from_numpy(planned_order(plan) // draws) if len(plans) == 2 else None
        return replace(
            work,
            latents=self._latents,
            reference_latents=self._reference,
            renders=torch.full_like(work.renders, render),
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


class RenderDraws:
    """A request's refinements, one for each render.

    Args:
        moved: called whenever a mean has changed.
    """

    def __init__(
        self,
        request: RefineRequest,
        resolved: Resolved,
        submit: Submit,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._request = request
        self._resolved = resolved
        self.blocks = BlockEvaluator(request, resolved, submit)

        def evaluator(render: int) -> EvaluateBlock:
            return lambda number, streams, draws: self.blocks.evaluate(
                render, number, streams, draws
            )

        self.renders = [
            Refinement(
                evaluator(render),
                target=request.target,
                most=request.max_draws,
                stratified=resolved.sampler in _OWN_STRATA,
                moved=moved,
            )
            for render in range(len(request.latents))
        ]

    def snapshot(self, finished: Sequence[bool], *, final: bool) -> Refined:
        """All renders as they are.

        Args:
            finished: whether each has come to its end.
            final: what has not was ended by time.
        """
        parts = [combine(*render.used()) for render in self.renders]
        variance = np.array([part.variance for part in parts])
        available = not np.isnan(variance).any()
        if not available:
            estimator = VarianceEstimator.UNAVAILABLE
        elif any(part.conservative for part in parts):
            estimator = VarianceEstimator.CONSERVATIVE
        else:
            estimator = VarianceEstimator.UNBIASED
        gradient = np.stack([part.mean for part in parts]).astype(np.float32)
        spent = self.blocks.draws_spent
        return Refined(
            gradient=gradient.reshape(self._request.latents.shape),
            noise_variance=variance if available else None,
            variance_estimator=estimator,
            relative_standard_error=np.array([part.relative_standard_error for part in parts]),
            draws=np.array([part.draws for part in parts], dtype=np.int64),
            stop_reasons=[
                render.stop_reason if done else StopReason.TIME_BUDGET if final else None
                for render, done in zip(self.renders, finished, strict=True)
            ],
            final=final,
            sampling=self._resolved,
            draws_spent=spent,
            evaluations_spent=spent * len(self._request.branches),
            queue_seconds=self.blocks.queue_seconds,
            compute_seconds=self.blocks.compute_seconds,
        )


async def refine_gradient(
    request: RefineRequest,
    scheduler: Scheduler,
    histories: DrawHistories,
    deadline: float | None,
) -> AsyncGenerator[Refined]:
    """Running means, at most one every 100 ms, and the final one. Closing the generator drops
    what is in flight.

    Args:
        deadline: of the call, on the scheduler's clock; a margin for the reply is kept.

    Raises:
        RequestError: as ``Scheduler.submit``. A full queue fails the call only at its start;
            later on it waits.
    """
    start = scheduler.now()
    key = history_key(
        request.objective, [b.use_reference for b in request.branches], request.history
    )
    resolved = resolve(
        request.sampling,
        request.objective,
        histories.recall(key, request.seed),
        max(1, request.max_draws // 2),
    )
    moved = asyncio.Event()
    outstanding = asyncio.Semaphore(_OUTSTANDING_BLOCKS)

    async def submit(work: Work) -> JobResult:
        async with outstanding:
            while True:
                try:
                    return await scheduler.submit(work, deadline)
                except RequestError as error:
                    if error.reason is not Reason.QUEUE_FULL or call.blocks.draws_spent == 0:
                        raise
                    await asyncio.sleep(error.retry_delay_seconds or 0.0)

    call = RenderDraws(request, resolved, submit, moved.set)
    tasks = [asyncio.ensure_future(render.run()) for render in call.renders]
    for task in tasks:
        task.add_done_callback(lambda _: moved.set())
    stop = _stop_time(request, start, deadline)
    due, news = start + _MESSAGE_SECONDS, False
    try:
        while not all(task.done() for task in tasks):
            started = all(render.started for render in call.renders)
            now = scheduler.now()
            if started and now >= stop:
                break
            if started and news and now >= due:
                yield call.snapshot([task.done() for task in tasks], final=False)
                due, news = scheduler.now() + _MESSAGE_SECONDS, False
                continue
            # Before every render has a mean there is nothing to send, nor to end with.
            until = min(stop, due if news else math.inf) if started else math.inf
            news |= await _moved_within(moved, until - now)
            _raise_first(tasks)
        _raise_first(tasks)
        finished = [task.done() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    histories.record(key, request.seed, *call.blocks.record())
    yield call.snapshot(finished, final=True)


def _stop_time(request: RefineRequest, start: float, deadline: float | None) -> float:
    """When to end with what there is."""
    stop = math.inf if request.max_seconds is None else start + request.max_seconds
    if deadline is not None:
        margin = min(0.5, 0.05 + 0.1 * max(0.0, deadline - start))
        stop = min(stop, deadline - margin)
    return stop


async def _moved_within(moved: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(moved.wait(), None if seconds == math.inf else max(0.0, seconds))
    except TimeoutError:
        return False
    moved.clear()
    return True


def _raise_first(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
