"""The queue in front of a teacher's replicas: microbatches over requests, within bounds.

A microbatch is formed when a replica can take one, never on a timer. It holds rows of as many
waiting requests as fit its evaluation budget, shared max-min fairly; a long request is cut so
that short ones pass between. Rows of requests that have expired or whose client has left are
dropped before the forward.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.job import Job, JobResult
from carv_server.packing import fair_shares
from carv_server.replicas.protocol import (
    MicrobatchResult,
    Replica,
    ReplicaLost,
    Work,
    WorkResult,
)

__all__ = ["Scheduler", "SchedulerConfig"]

_log = logging.getLogger(__name__)

_COST_SMOOTHING = 0.1
_LEAST_RETRY_SECONDS = 0.05


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of one teacher's queue.

    Attributes:
        evaluation_budget: evaluations in one microbatch.
        max_waiting_evaluations: evaluations that may wait; over it, requests are refused.
        max_waiting_requests: requests that may wait.
    """

    evaluation_budget: int = 64
    max_waiting_evaluations: int = 1 << 16
    max_waiting_requests: int = 1024


class _Slice(NamedTuple):
    job: Job
    cells: range
    work: Work


class Scheduler:
    """Serves one teacher's jobs on its replicas. Lives on one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self, replicas: Sequence[Replica], config: SchedulerConfig, clock: Callable[[], float]
    ) -> None:
        self._replicas = list(replicas)
        self._tasks: dict[int, list[asyncio.Task[None]]] = {}
        self._running: dict[int, int] = {}
        self._again: list[list[_Slice]] = []
        self._started = False
        self._config = config
        self._clock = clock
        self._waiting: list[Job] = []
        self._arrival = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._evaluation_seconds = 0.0
        self._stopped = False

    @property
    def evaluation_seconds(self) -> float:
        """Smoothed seconds per evaluation; 0 before the first microbatch."""
        return self._evaluation_seconds

    def now(self) -> float:
        """Reading of the clock that deadlines are on."""
        return self._clock()

    @property
    def waiting_evaluations(self) -> int:
        return sum(job.waiting_evaluations for job in self._waiting)

    def start(self) -> None:
        self._started = True
        for replica in self._replicas:
            self._employ(replica)

    def add_replica(self, replica: Replica) -> None:
        self._replicas.append(replica)
        if self._started:
            self._employ(replica)

    async def remove_replica(self, replica: Replica) -> None:
        """Give it nothing more; returns once nothing of it is awaited."""
        if replica not in self._replicas:
            return
        self._replicas.remove(replica)
        self._arrival.set()
        await asyncio.gather(*self._tasks.pop(id(replica), []), return_exceptions=True)

    def _employ(self, replica: Replica) -> None:
        self._running[id(replica)] = 0
        tasks = [asyncio.create_task(self._work_on(replica)) for _ in range(replica.in_flight)]
        self._tasks[id(replica)] = tasks
        self._workers += tasks

    async def stop(self) -> None:
        """End the workers; jobs still waiting, and any that come later, fail with DRAINING."""
        self._stopped = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for job in [*self._waiting, *(item.job for items in self._again for item in items)]:
            job.fail(RequestError(Reason.DRAINING, "the server has stopped; send it elsewhere"))
        self._waiting.clear()

    async def submit(self, work: Work, deadline: float | None) -> JobResult:
        """Evaluate a request's draws; resolves when all of them are done.

        Args:
            deadline: clock reading, or None.

        Raises:
            RequestError: QUEUE_FULL, DEADLINE_EXPIRED, NON_FINITE_RESULT, REPLICA_FAILED or
                DRAINING.
            asyncio.CancelledError: the caller left; its rows are dropped.
        """
        self._admit(work.evaluations)
        job = Job(work, submitted=self._clock(), deadline=deadline)
        self._waiting.append(job)
        self._arrival.set()
        try:
            return await job.done
        finally:
            # Cancellation of this coroutine has cancelled the future: the job is over.
            if job in self._waiting:
                self._waiting.remove(job)

    async def submit_patiently(
        self, work: Work, deadline: float | None, under_way: Callable[[], bool]
    ) -> JobResult:
        """As ``submit``, but a full queue is waited for once the call is under way, until its
        deadline."""
        while True:
            try:
                return await self.submit(work, deadline)
            except RequestError as error:
                if error.reason is not Reason.QUEUE_FULL or not under_way():
                    raise
                delay = error.retry_delay_seconds or _LEAST_RETRY_SECONDS
            left = math.inf if deadline is None else deadline - self._clock()
            await asyncio.sleep(max(0.0, min(delay, left)))
            if left <= delay:
                raise RequestError(
                    Reason.DEADLINE_EXPIRED, "the deadline passed while the queue was full"
                )

    def _admit(self, evaluations: int) -> None:
        if self._stopped:
            raise RequestError(Reason.DRAINING, "the server has stopped; send it elsewhere")
        waiting = self.waiting_evaluations
        config = self._config
        # An empty queue takes any request, or one above the bound could never run.
        if not self._waiting or (
            waiting + evaluations <= config.max_waiting_evaluations
            and len(self._waiting) < config.max_waiting_requests
        ):
            return
        delay = max(
            _LEAST_RETRY_SECONDS, waiting * self._evaluation_seconds / max(1, len(self._replicas))
        )
        raise RequestError(
            Reason.QUEUE_FULL,
            f"{waiting} evaluations of {len(self._waiting)} requests are waiting; the limits are "
            f"{config.max_waiting_evaluations} and {config.max_waiting_requests}; retry after "
            f"{delay:.2f} s",
            retry_delay_seconds=delay,
        )

    async def _work_on(self, replica: Replica) -> None:
        while replica in self._replicas:
            idlest = min(self._running[id(other)] for other in self._replicas)
            slices = self._form_microbatch() if self._running[id(replica)] <= idlest else []
            if not slices:
                self._arrival.clear()
                await self._arrival.wait()
                continue
            self._running[id(replica)] += 1
            self._arrival.set()
            try:
                await self._run(replica, slices)
            except ReplicaLost:
                self._again.append(slices)
                self._arrival.set()
                return
            except asyncio.CancelledError:
                for item in slices:
                    item.job.fail(RequestError(Reason.DRAINING, "the server has stopped"))
                raise
            except Exception:  # noqa: BLE001 - these requests fail, the queue lives on
                _log.exception("a microbatch's results could not be delivered")
                for item in slices:
                    item.job.fail(
                        RequestError(
                            Reason.INTERNAL, "a defect of the server; its log has the trace"
                        )
                    )
            finally:
                self._running[id(replica)] -= 1
                self._arrival.set()

    def _form_microbatch(self) -> list[_Slice]:
        self._drop_expired()
        while self._again:
            slices = [item for item in self._again.pop() if not item.job.over]
            if slices:
                return slices
        waiting = [job for job in self._waiting if job.waiting_evaluations > 0]
        if not waiting:
            return []
        # Every cell takes at least one evaluation, so neither more jobs nor more cells fit.
        budget = self._config.evaluation_budget
        jobs = [job for job in waiting if job.signature == waiting[0].signature][:budget]
        shares = fair_shares([job.waiting_costs(budget) for job in jobs], budget)
        now = self._clock()
        slices = [
            _Slice(job, *job.take(share, now=now))
            for job, share in zip(jobs, shares, strict=True)
            if share > 0
        ]
        # Who was served goes behind who was not: with more requests than fit one microbatch,
        # every request still moves on, in order of arrival.
        served = {id(item.job) for item in slices}
        self._waiting = [job for job in self._waiting if id(job) not in served] + [
            item.job for item in slices if item.job.waiting_evaluations > 0
        ]
        return slices

    def _drop_expired(self) -> None:
        self._expire(self._waiting)
        self._waiting = [job for job in self._waiting if not job.over]

    def _expire(self, jobs: Sequence[Job]) -> None:
        now = self._clock()
        for job in jobs:
            if job.deadline is not None and job.deadline <= now:
                job.fail(
                    RequestError(
                        Reason.DEADLINE_EXPIRED,
                        f"the deadline passed {now - job.submitted:.3f} s after admission; "
                        f"{job.waiting_evaluations} evaluations were not computed",
                    )
                )

    async def _run(self, replica: Replica, slices: Sequence[_Slice]) -> None:
        try:
            microbatch = await replica.run([item.work for item in slices])
        except ReplicaLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a teacher raises fails its request
            if len(slices) > 1:
                # One request's rows must not fail the others': each runs alone.
                _log.warning("microbatch of %d requests failed, one by one now", len(slices))
                for item in slices:
                    self._expire([item.job])
                    if not item.job.over:  # its client may have left meanwhile
                        await self._run(replica, [item])
                return
            _log.exception("forward failed")
            slices[0].job.fail(
                RequestError(
                    Reason.REPLICA_FAILED,
                    f"the teacher's forward raised {type(error).__name__}; the server's log has "
                    "the trace",
                )
            )
            return
        self._deliver(slices, microbatch)

    def _deliver(self, slices: Sequence[_Slice], microbatch: MicrobatchResult) -> None:
        evaluations = sum(item.work.evaluations for item in slices)
        cost = microbatch.seconds / evaluations
        first = self._evaluation_seconds == 0.0
        self._evaluation_seconds += (1.0 if first else _COST_SMOOTHING) * (
            cost - self._evaluation_seconds
        )
        for item, result in zip(slices, microbatch.results, strict=True):
            if result.failure is not None:
                item.job.fail(_non_finite(item.work, result))
            else:
                item.job.deliver(item.cells, result, cost * item.work.evaluations)


def _non_finite(work: Work, result: WorkResult) -> RequestError:
    draw = result.failure
    assert draw is not None
    return RequestError(
        Reason.NON_FINITE_RESULT,
        f"the teacher gave a non-finite result for render {draw.render} at timestep "
        f"{draw.timestep}, noise index {draw.noise_index}, seed {work.seed}",
        metadata={
            "render": str(draw.render),
            "timestep": str(draw.timestep),
            "noise_index": str(draw.noise_index),
            "seed": str(work.seed),
        },
    )
