"""The queue in front of a teacher's replicas: bounded, fair, and late to bind rows to a forward.

    submit → admission → FairQueue → a ReplicaWorker's microbatch → replica → results merge

Microbatches are formed when a replica can take one, never on a fixed timer; parts of a long
request pass through several of them, on all replicas at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.replicas.protocol import Replica, Work
from carv_server.scheduling.admission import is_admitted
from carv_server.scheduling.config import SchedulerConfig
from carv_server.scheduling.fair_queue import FairQueue, Waiting
from carv_server.scheduling.job import Job, JobResult
from carv_server.scheduling.outcomes import drained, expire, expired, no_replica
from carv_server.scheduling.pace import LEAST_WAIT_SECONDS
from carv_server.scheduling.returns import ReturnForecast
from carv_server.scheduling.snapshot import MicrobatchReport, SchedulerSnapshot, Tally
from carv_server.scheduling.terms import Terms
from carv_server.scheduling.worker import Floor, ReplicaWorker

__all__ = ["Scheduler", "SchedulerConfig"]

# So long a queue is kept without a replica: one that was lost may be back by then.
_WITHOUT_REPLICA_SECONDS = 10.0
_LEAST_RETRY_SECONDS, _LARGEST_RETRY_SECONDS = 0.05, 60.0


class Scheduler:
    """Serves one teacher's jobs on its replicas. Lives on one event loop.

    Args:
        replicas: those there at the start; others may come and go.
        clock: monotonic seconds, callable in any thread.
        observe: told of every microbatch that ran, on the event loop.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        config: SchedulerConfig,
        clock: Callable[[], float],
        observe: Callable[[MicrobatchReport], None] | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._queue = FairQueue[Job](config.evaluation_budget, config.tenant_weights)
        self._forecast = ReturnForecast()
        self._tally = Tally()
        self._floor = Floor(
            self._queue, self._forecast, config, clock, self._tally, self._on_lost, observe
        )
        self._at_start = list(replicas)
        self._workers = self._floor.workers
        self._started = self._stopped = False
        self._woken = False
        self._bereft_since = math.inf

    @property
    def evaluation_seconds(self) -> float:
        """Smoothed seconds per evaluation; 0 before the first microbatch."""
        return self._tally.evaluation_seconds

    @property
    def waiting(self) -> Waiting:
        """What no microbatch has taken yet."""
        return Waiting(self._queue.requests, self._queue.evaluations)

    def now(self) -> float:
        """Reading of the clock that deadlines are on."""
        return self._clock()

    def snapshot(self) -> SchedulerSnapshot:
        tally, budget = self._tally, self._config.evaluation_budget
        return SchedulerSnapshot(
            waiting=self.waiting,
            tenants=self._queue.by_tenant(),
            replicas=tuple(worker.snapshot() for worker in self._workers),
            evaluation_seconds=tally.evaluation_seconds,
            microbatches=tally.microbatches,
            evaluations=tally.evaluations,
            mean_fill=tally.evaluations / budget / max(1, tally.microbatches),
            held_seconds=tally.held_seconds,
            answered=tally.answered,
            failed=tally.failed,
            expired=tally.expired,
            cancelled=tally.cancelled,
            refused=tally.refused,
            lost_microbatches=tally.lost_microbatches,
            retried=tally.retried,
        )

    def start(self) -> None:
        self._started = True
        for replica in self._at_start:
            self.add_replica(replica)
        self._at_start.clear()

    async def stop(self) -> None:
        """End the workers; jobs still waiting, and any that come later, fail with DRAINING."""
        self._stopped = True
        await asyncio.gather(*(worker.abandon() for worker in self._workers))
        self._workers.clear()
        for job in self._queue.jobs():
            job.fail(drained())
            self._queue.discard(job)

    def add_replica(self, replica: Replica) -> None:
        """Give work to one more replica; to one that is here already, no more than before."""
        if not self._started:
            self._at_start.append(replica)
        elif not self._stopped and all(worker.replica is not replica for worker in self._workers):
            self._workers.append(ReplicaWorker(replica, self._floor))
            self._wake()

    async def remove_replica(self, replica: Replica) -> None:
        """Give a replica no more work, and wait for what it runs. One that was lost is gone
        already."""
        for worker in [worker for worker in self._workers if worker.replica is replica]:
            self._part_with(worker)
            await worker.close()

    async def submit(self, work: Work, terms: Terms) -> JobResult:
        """Evaluate a request's draws; resolves when all of them are done.

        Without a replica it waits until its deadline; but where there has been none for ten
        seconds it is refused.

        Raises:
            RequestError: QUEUE_FULL, DEADLINE_EXPIRED, NON_FINITE_RESULT, REPLICA_FAILED,
                NO_REPLICA or DRAINING.
            asyncio.CancelledError: the caller left; its rows are dropped.
        """
        now = self._clock()
        self._admit(work.evaluations, terms, now)
        loop = asyncio.get_running_loop()
        job = Job(work, terms, submitted=now, done=loop.create_future())
        self._forecast.arrived((terms.tenant, terms.caller), work.evaluations, now)
        self._queue.push(job)
        self._wake()
        alarm = None
        if terms.deadline is not None:
            alarm = loop.call_later(terms.deadline - now, self._expire, job)
        try:
            result = await job.done
        except asyncio.CancelledError:
            # It has cancelled the future, so that nothing of the job is wanted any more.
            self._tally.cancelled += 1
            raise
        except RequestError as error:
            if error.reason is Reason.DEADLINE_EXPIRED:
                self._tally.expired += 1
            else:
                self._tally.failed += 1
            raise
        finally:
            self._queue.discard(job)
            if terms.trace is not None:
                terms.trace.waited(now, job.started, self._clock())
            if alarm is not None:
                alarm.cancel()
            # A failure's frames hold the job, whose future holds the failure: with this the
            # latents are freed with their request, and not at a collection.
            del job
        self._tally.answered += 1
        return result

    async def submit_patiently(
        self, work: Work, terms: Terms, under_way: Callable[[], bool]
    ) -> JobResult:
        """As ``submit``, but a full queue or quota is waited for once the call is under way, until
        its deadline. Charges the terms' meter."""
        meter = terms.meter
        while True:
            try:
                if meter is None:
                    return await self.submit(work, terms)
                with meter.charged(work.evaluations):
                    return await self.submit(work, terms)
            except RequestError as error:
                if not _passes(error, under_way() or (meter is not None and meter.under_way)):
                    raise
                delay = error.retry_delay_seconds or _LEAST_RETRY_SECONDS
            left = math.inf if terms.deadline is None else terms.deadline - self._clock()
            await asyncio.sleep(max(0.0, min(delay, left)))
            if left <= delay:
                raise RequestError(
                    Reason.DEADLINE_EXPIRED,
                    "the deadline passed while the queue or a quota was full",
                )

    def _admit(self, evaluations: int, terms: Terms, now: float) -> None:
        if self._stopped:
            raise drained()
        if terms.deadline is not None and terms.deadline <= now:
            self._tally.expired += 1
            raise expired(0.0, evaluations)
        if not self._workers and now - self._bereft_since > _WITHOUT_REPLICA_SECONDS:
            self._tally.refused += 1
            raise no_replica(
                f"no replica of the teacher has been there for {now - self._bereft_since:.0f} s; "
                "another is being started"
            )
        config, queue, tenant = self._config, self._queue, terms.tenant
        total = self.waiting
        if is_admitted(evaluations, total, queue.waiting(tenant), queue.share(tenant), config):
            return
        self._tally.refused += 1
        delay = total.evaluations * self.evaluation_seconds / max(1, len(self._workers))
        delay = min(max(_LEAST_RETRY_SECONDS, delay), _LARGEST_RETRY_SECONDS)
        # Counts of its own alone: what other tenants do is not for this one to know.
        own = queue.waiting(tenant)
        raise RequestError(
            Reason.QUEUE_FULL,
            f"the queue is full, with {own.evaluations} evaluations of {own.requests} requests of "
            f"yours; the limits are {config.max_waiting_evaluations} and "
            f"{config.max_waiting_requests} for all together; retry after {delay:.2f} s",
            retry_delay_seconds=delay,
        )

    def reweigh(self) -> None:
        """Take the tenants' weights as they are now, also for those that wait."""
        self._queue.reweigh()

    def _wake(self) -> None:
        """Let workers look at the queue once what else is ready on the loop has run: requests that
        arrive together go together."""
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._on_arrivals)

    def _on_arrivals(self) -> None:
        self._woken = False
        for worker in list(self._workers):
            worker.on_arrival()

    def _expire(self, job: Job) -> None:
        now, deadline = self._clock(), job.terms.deadline
        expire(job, now)
        if not job.over and deadline is not None:  # the loop's clock is ahead, or it rounds
            left = max(deadline - now, LEAST_WAIT_SECONDS)
            asyncio.get_running_loop().call_later(left, self._expire, job)

    def _on_lost(self, worker: ReplicaWorker) -> None:
        if worker in self._workers:
            self._part_with(worker)
        self._wake()

    def _part_with(self, worker: ReplicaWorker) -> None:
        self._workers.remove(worker)
        if not self._workers:
            self._bereft_since = self._clock()


def _passes(error: RequestError, under_way: bool) -> bool:
    """Whether to wait and ask again."""
    if error.reason is Reason.QUOTA_EXCEEDED:
        return under_way and error.retry_delay_seconds is not None
    return under_way and error.reason is Reason.QUEUE_FULL
