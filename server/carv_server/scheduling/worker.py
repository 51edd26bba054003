"""One replica's microbatches: what each holds, and where its results go."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from carv_server.errors import RequestError
from carv_server.replicas.protocol import MicrobatchResult, Replica, ReplicaLost
from carv_server.scheduling.config import SchedulerConfig
from carv_server.scheduling.fair_queue import FairQueue
from carv_server.scheduling.job import Job, Slice
from carv_server.scheduling.microbatch import Microbatch
from carv_server.scheduling.outcomes import (
    drained,
    expire,
    non_finite,
    replica_failed,
    replicas_lost,
    server_defect,
)
from carv_server.scheduling.pace import LEAST_WAIT_SECONDS, Pace
from carv_server.scheduling.returns import ReturnForecast
from carv_server.scheduling.snapshot import MicrobatchReport, ReplicaSnapshot, Tally
from carv_server.scheduling.trace import Part, note_run

__all__ = ["Floor", "ReplicaWorker"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Replicas that may be lost under one slice before its request is taken for the cause.
_MOST_ATTEMPTS = 3
# After so many it runs by itself, so that others are not lost with it to the end.
_ATTEMPTS_IN_COMPANY = 2


@dataclass
class Floor:
    """What the workers of one queue share.

    Attributes:
        clock: monotonic seconds, callable in any thread.
        lost: told of a worker whose replica is gone, once its work is back in the queue.
        observe: told of every microbatch that ran.
        numbers: of replicas and of traced microbatches.
    """

    queue: FairQueue[Job]
    forecast: ReturnForecast
    config: SchedulerConfig
    clock: Callable[[], float]
    tally: Tally
    lost: Callable[[ReplicaWorker], None]
    observe: Callable[[MicrobatchReport], None] | None = None
    workers: list[ReplicaWorker] = field(default_factory=list["ReplicaWorker"])
    numbers: Iterator[int] = field(default_factory=itertools.count)


class ReplicaWorker:
    """Hands microbatches to one replica, on the event loop that made it, at a ``Pace``."""

    def __init__(self, replica: Replica, floor: Floor) -> None:
        self.replica = replica
        self._floor = floor
        self._name = str(next(floor.numbers))
        self._pace = Pace(
            floor.queue,
            floor.forecast,
            floor.config,
            replica.in_flight,
            lambda: sum(worker.idle for worker in floor.workers),
        )
        self._running: list[Microbatch] = []
        self._futures: set[asyncio.Future[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._listening = True
        self._closed = False
        self._abandoned = False

    @property
    def idle(self) -> bool:
        return not self._running

    def snapshot(self) -> ReplicaSnapshot:
        return ReplicaSnapshot(
            len(self._running),
            sum(microbatch.evaluations for microbatch in self._running),
            self._pace.cost.launch_seconds,
            self._pace.cost.row_seconds,
        )

    def on_arrival(self) -> None:
        """Something new waits."""
        if self._listening:
            self.advance()

    def advance(self) -> None:
        """Hand over what is due now, and see to being called when the next one is."""
        self._silence()
        while (wait := self._wait()) <= 0.0:
            self._hand_over()
        if wait < math.inf:
            # An event loop may round to whole milliseconds, and would turn until the rest is over.
            self._alarm = self._loop.call_later(max(wait, LEAST_WAIT_SECONDS), self.advance)

    async def close(self) -> None:
        """Take no more work, and wait for what runs."""
        self._closed = True
        self._silence()
        while self._futures:  # one that ends may begin another
            await asyncio.gather(*self._futures, return_exceptions=True)

    async def abandon(self) -> None:
        """Take no more work, and fail what runs with DRAINING."""
        self._abandoned = True
        for future in list(self._futures):
            future.cancel()
        await self.close()

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _wait(self) -> float:
        """Seconds until a microbatch should be formed; infinity: once something happens."""
        if self._closed:
            return math.inf
        wait = self._pace.wait(self._floor.clock(), self._running)
        self._listening = wait.listens
        return wait.seconds

    def _hand_over(self) -> None:
        """Form a microbatch of what waits, if any of that is still wanted, and run it."""
        floor = self._floor
        now = floor.clock()
        slices: list[Slice] = []
        cells: dict[Job, int] = {}
        for job, count in floor.queue.take(self._pace.budget()):
            if job.wanted(now):
                slices += job.take(count, now=now)
                cells[job] = count
            else:
                expire(job, now)
                floor.queue.discard(job)
        if not slices:
            return
        evaluations = sum(item.work.evaluations for item in slices)
        free = max(now, self._running[-1].end) if self._running else now
        microbatch = Microbatch(
            slices,
            evaluations,
            cells,
            handed=now,
            end=free + self._pace.cost.seconds(evaluations),
            alone=not self._running,
            held_seconds=self._pace.take_held(now),
        )
        self._running.append(microbatch)
        # It belongs to no one request, whosever arrival it was that called for it.
        context = Context()
        running = context.run(lambda: asyncio.ensure_future(self._evaluate(slices)))
        self._running_on(running, lambda ended: self._end(microbatch, ended), context)

    def _running_on(
        self, future: asyncio.Future[T], end: Callable[[asyncio.Future[T]], None], context: Context
    ) -> None:
        """Keep it until it is over, and call ``end`` then."""
        self._futures.add(future)
        future.add_done_callback(self._futures.discard, context=context)
        future.add_done_callback(end, context=context)

    def _end(self, microbatch: Microbatch, ended: asyncio.Future[MicrobatchResult]) -> None:
        """Nothing is raised here that ``ended`` holds: its trace would hold this frame, and in a
        cycle all that the microbatch was made of."""
        error = None if ended.cancelled() else ended.exception()
        try:
            if ended.cancelled() or self._abandoned:
                _fail(microbatch.slices, drained)
            elif error is None:
                result = ended.result()
                self._trace(microbatch, result.seconds, "ran")
                self._measure(microbatch, result)
                self._expect_returns(microbatch)
                # The device comes first: the answers take the event loop a while.
                self._release(microbatch)
                self._deliver(microbatch.slices, result)
            elif isinstance(error, ReplicaLost):
                self._trace(microbatch, 0.0, "lost")
                self._lose(microbatch, microbatch.slices)
            else:  # whatever a teacher raises fails its request
                self._trace(microbatch, 0.0, "raised")
                context = Context()
                again = self._loop.create_task(self._one_by_one(microbatch, error), context=context)
                self._running_on(again, lambda ended: self._end_again(microbatch, ended), context)
                return
        except Exception:  # noqa: BLE001 - these requests fail, the queue lives on
            _undelivered(microbatch.slices)
        self._release(microbatch)

    def _end_again(self, microbatch: Microbatch, ended: asyncio.Future[None]) -> None:
        """After ``_one_by_one``, which may not even have begun."""
        if ended.cancelled():
            _fail(microbatch.slices, drained)
        elif (error := ended.exception()) is not None:
            _undelivered(microbatch.slices, error)
        self._release(microbatch)

    def _evaluate(self, slices: Sequence[Slice]) -> Awaitable[MicrobatchResult]:
        clock = self._floor.clock
        return self.replica.run(
            [item.work for item in slices], lambda index: slices[index].job.wanted(clock())
        )

    async def _one_by_one(self, microbatch: Microbatch, error: BaseException) -> None:
        """A forward raised: one request's rows must not fail the others', so each runs alone."""
        slices = microbatch.slices
        if len(slices) == 1:
            _log.error("forward failed", exc_info=error)
            slices[0].job.fail(replica_failed(error))
            return
        _log.warning("microbatch of %d requests failed, one by one now", len(slices))
        waits, held_seconds = microbatch.waits(), microbatch.held_seconds
        for index, item in enumerate(slices):
            try:
                result = await self._evaluate([item])
                first = [waits.pop(item.job)] if item.job in waits else []
                if self._count([item], result, held_seconds, first):
                    held_seconds = 0.0  # all of them waited once
                self._deliver([item], result)
            except ReplicaLost:
                self._lose(microbatch, slices[index:])
                return
            except Exception as its_own:  # noqa: BLE001 - as above
                _log.exception("forward failed")
                item.job.fail(replica_failed(its_own))

    def _lose(self, microbatch: Microbatch, slices: Sequence[Slice]) -> None:
        """The replica is gone: what it had runs elsewhere, with the same draws."""
        floor = self._floor
        _log.warning("a replica was lost with a microbatch of %d requests", len(microbatch.cells))
        floor.tally.lost_microbatches += 1
        self._closed = True
        self._silence()
        for item in slices:
            if item.job.over:
                continue
            if item.attempts >= _MOST_ATTEMPTS:
                item.job.fail(replicas_lost(item.attempts))
                floor.queue.discard(item.job)
                continue
            # Out and in again: what is counted of a job in the queue never changes under it.
            floor.queue.discard(item.job)
            item.job.give_back(item)
            floor.tally.retried += 1
            if item.attempts >= _ATTEMPTS_IN_COMPANY:
                item.job.isolate()
            floor.queue.push(item.job, ahead=True)
        floor.lost(self)

    def _measure(self, microbatch: Microbatch, result: MicrobatchResult) -> None:
        """Count it, and learn what a microbatch costs."""
        evaluations = self._count(
            microbatch.slices, result, microbatch.held_seconds, microbatch.waits().values()
        )
        if evaluations == 0:
            return
        self._pace.cost.observe(evaluations, result.seconds)
        if microbatch.alone:
            elapsed = self._floor.clock() - microbatch.handed
            self._pace.observe_overhead(max(0.0, elapsed - result.seconds))

    def _count(
        self,
        slices: Sequence[Slice],
        result: MicrobatchResult,
        held_seconds: float,
        waits: Iterable[float],
    ) -> int:
        """Tell those who count of a forward; the evaluations that it computed.

        Args:
            waits: as ``MicrobatchReport``.
        """
        floor = self._floor
        works = zip(slices, result.results, strict=True)
        evaluations = sum(item.work.evaluations for item, found in works if found is not None)
        if evaluations == 0:
            return 0
        floor.tally.count_forward(evaluations, result.seconds, held_seconds)
        if floor.observe is not None:
            report = MicrobatchReport(
                len({item.job for item in slices}),
                evaluations,
                evaluations / floor.config.evaluation_budget,
                result.seconds,
                held_seconds,
                tuple(waits),
            )
            # From the loop, so that an observer that raises fails nobody's request.
            self._loop.call_soon(floor.observe, report)
        return evaluations

    def _trace(self, microbatch: Microbatch, seconds: float, outcome: str) -> None:
        """Tell the traced requests of it, if there are any."""
        if all(job.terms.trace is None for job in microbatch.cells):
            return
        note_run(
            [Part(item.job.terms, item.work.evaluations) for item in microbatch.slices],
            next(self._floor.numbers),
            self._name,
            handed=microbatch.handed,
            ended=self._floor.clock(),
            device_seconds=seconds,
            outcome=outcome,
        )

    def _expect_returns(self, microbatch: Microbatch) -> None:
        now = self._floor.clock()
        for job in microbatch.answers():
            self._floor.forecast.answered((job.tenant, job.terms.caller), now)

    def _release(self, microbatch: Microbatch) -> None:
        """The device is done with a microbatch, if it was not before: hand over the next."""
        if microbatch not in self._running:
            return
        self._running.remove(microbatch)
        if self._running:
            first = self._running[0]
            first.end = self._floor.clock() + self._pace.cost.seconds(first.evaluations)
        self.advance()

    def _deliver(self, slices: Sequence[Slice], microbatch: MicrobatchResult) -> None:
        now = self._floor.clock()
        done = [
            (item, result)
            for item, result in zip(slices, microbatch.results, strict=True)
            if result is not None
        ]
        evaluations = sum(item.work.evaluations for item, _ in done)
        for item in slices:
            expire(item.job, now)
        for item, result in done:
            if result.failure is not None:
                item.job.fail(non_finite(item.work, result.failure))
            else:
                seconds = microbatch.seconds * item.work.evaluations / evaluations
                item.job.deliver(item.cells, result, seconds)


def _fail(slices: Sequence[Slice], error: Callable[[], RequestError]) -> None:
    """Each with an error of its own, which its call will add to."""
    for item in slices:
        item.job.fail(error())


def _undelivered(slices: Sequence[Slice], error: BaseException | None = None) -> None:
    """A defect, and no fault of theirs. Without an error it is the one that is being handled."""
    _log.error("a microbatch's results could not be delivered", exc_info=error or True)
    _fail(slices, server_defect)
