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
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_server.estimate import VarianceEstimator
from carv_server.history import DrawHistories, history_key
from carv_server.refine.blocks import OWN_STRATA, BlockEvaluator, Submit
from carv_server.refine.streams import EvaluateBlock, Refinement, StopReason
from carv_server.replicas.protocol import Work
from carv_server.request import RefineRequest
from carv_server.sampling.plan import Resolved, resolve
from carv_server.sampling.streams import Combined, combine
from carv_server.scheduler import Scheduler
from carv_server.scheduling.job import JobResult
from carv_server.scheduling.terms import Terms

__all__ = ["Refined", "RenderDraws", "refine_gradient"]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_MESSAGE_SECONDS = 0.1
_BYTES_PER_SECOND = 1 << 24  # of running means, at most
# Blocks of one call before the scheduler at once: enough to fill microbatches, and few enough
# that a call of many renders does not crowd out the calls of others.
_OUTSTANDING_BLOCKS = 16


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
                stratified=resolved.sampler in OWN_STRATA,
                moved=moved,
            )
            for render in range(len(request.latents))
        ]

    def snapshot(self, finished: Sequence[bool], *, final: bool) -> Callable[[], Refined]:
        """All renders as they are now; the work is left to the function returned, which may be
        called in any thread.

        Args:
            finished: whether each has come to its end.
            final: what has not was ended by time.
        """
        streams = [render.used() for render in self.renders]
        reasons = [
            render.stop_reason if done else StopReason.TIME_BUDGET if final else None
            for render, done in zip(self.renders, finished, strict=True)
        ]
        spent = self.blocks.draws_spent
        queue_seconds, compute_seconds = self.blocks.queue_seconds, self.blocks.compute_seconds

        def refined() -> Refined:
            shape = self._request.latents.shape
            gradient = np.empty((len(streams), math.prod(shape[1:])), dtype=np.float32)
            parts: list[Combined] = []
            for render, (first, second) in enumerate(streams):
                part = combine(first, second)
                gradient[render] = part.mean
                parts.append(part)
            variance = np.array([part.variance for part in parts])
            available = not np.isnan(variance).any()
            if not available:
                estimator = VarianceEstimator.UNAVAILABLE
            elif any(part.conservative for part in parts):
                estimator = VarianceEstimator.CONSERVATIVE
            else:
                estimator = VarianceEstimator.UNBIASED
            return Refined(
                gradient=gradient.reshape(shape),
                noise_variance=variance if available else None,
                variance_estimator=estimator,
                relative_standard_error=np.array([part.relative_standard_error for part in parts]),
                draws=np.array([part.draws for part in parts], dtype=np.int64),
                stop_reasons=reasons,
                final=final,
                sampling=self._resolved,
                draws_spent=spent,
                evaluations_spent=spent * len(self._request.branches),
                queue_seconds=queue_seconds,
                compute_seconds=compute_seconds,
            )

        return refined


async def refine_gradient(
    request: RefineRequest,
    scheduler: Scheduler,
    histories: DrawHistories,
    terms: Terms,
    workers: Executor | None = None,
) -> AsyncGenerator[Refined]:
    """Running means, at most one every 100 ms or fewer if they are large, and the final one.
    Closing the generator drops what is in flight.

    Args:
        terms: of the call; a margin for the reply is kept from the deadline.
        workers: where means are put together, off the event loop; None: the loop's own threads.

    Raises:
        RequestError: as ``Scheduler.submit``. A full queue fails the call only at its start;
            later on it waits.
    """
    start = scheduler.now()
    key = history_key(
        request.objective,
        [b.use_reference for b in request.branches],
        request.history,
        terms.tenant,
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
            return await scheduler.submit_patiently(
                work, terms, lambda: call.blocks.draws_spent > 0
            )

    call = RenderDraws(request, resolved, submit, moved.set)
    tasks = [asyncio.ensure_future(render.run()) for render in call.renders]
    for task in tasks:
        task.add_done_callback(lambda _: moved.set())
    stop = _stop_time(request, start, terms.deadline)
    loop = asyncio.get_running_loop()
    interval = max(_MESSAGE_SECONDS, request.latents.nbytes / _BYTES_PER_SECOND)
    due, news = start + interval, False
    try:
        while not all(task.done() for task in tasks):
            started = all(render.started for render in call.renders)
            now = scheduler.now()
            if started and now >= stop:
                break
            if started and news and now >= due:
                news = False
                mean = call.snapshot([task.done() for task in tasks], final=False)
                yield await loop.run_in_executor(workers, mean)
                due = scheduler.now() + interval
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
    yield await loop.run_in_executor(workers, call.snapshot(finished, final=True))


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
