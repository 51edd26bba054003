"""How microbatches end: by a replica that raises, however it does, by a stop in the middle, and
without a trace of the request that called for them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.replicas.hand_over import hand_over
from carv_server.replicas.protocol import MicrobatchResult, Wanted, Work
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.scheduling.terms import Terms
from carv_server.teachers.simulated import DeviceTiming
from tests.support.device import TimedReplica, work_of
from tests.support.virtual_time import run_virtually

TIMING = DeviceTiming(0.006, 0.001)
REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST", default="none")


class Payload:
    """What a failed forward's frames hold."""


class Replica(TimedReplica):
    """Does what it is told to in place of computing, or ahead of it."""

    def __init__(self, act: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(TIMING)
        self.act = act
        self.contexts: list[str] = []

    async def run(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        self.contexts.append(REQUEST.get())
        if self.act is not None:
            await self.act()
        return await super().run(works, wanted)


class Threaded(TimedReplica):
    """Runs a function in a thread, whatever the works."""

    def __init__(self, thread: Executor, forward: Callable[[], MicrobatchResult]) -> None:
        super().__init__(TIMING)
        self._thread = thread
        self._forward = forward

    def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, works: Sequence[Work], wanted: Wanted
    ) -> asyncio.Future[MicrobatchResult]:
        return hand_over(self._thread, self._forward)


def scheduler_of(replica: TimedReplica) -> Scheduler:
    loop = asyncio.get_running_loop()
    scheduler = Scheduler([replica], SchedulerConfig(evaluation_budget=8), loop.time)
    scheduler.start()
    return scheduler


async def reason_of(asked: Awaitable[object]) -> Reason:
    with pytest.raises(RequestError) as failed:
        await asked
    return failed.value.reason


def test_a_microbatch_runs_in_no_requests_context() -> None:
    async def scenario() -> None:
        replica = Replica()
        scheduler = scheduler_of(replica)
        REQUEST.set("somebody's")
        await scheduler.submit(work_of(2), Terms())
        await scheduler.stop()
        assert replica.contexts == ["none"]

    run_virtually(scenario())


def test_a_stop_ends_what_runs_and_what_would_run_again() -> None:
    """The first forward of two requests raises; the stop comes while they run one by one, or in
    the very turn in which they were to begin, or ahead of that."""

    async def scenario(turns: int) -> None:
        forwards = 0

        async def act() -> None:
            nonlocal forwards
            forwards += 1
            if forwards == 1:
                await asyncio.sleep(0.01)
                raise MemoryError("out of device memory")
            await asyncio.sleep(5.0)

        scheduler = scheduler_of(Replica(act))
        asked = [
            asyncio.ensure_future(scheduler.submit(work_of(2, seed=seed), Terms()))
            for seed in (1, 2)
        ]
        await asyncio.sleep(0.01)
        for _ in range(turns):
            await asyncio.sleep(0.0)
        begun = asyncio.get_running_loop().time()
        await scheduler.stop()
        assert asyncio.get_running_loop().time() - begun < 1.0
        assert [await reason_of(each) for each in asked] == [Reason.DRAINING] * 2
        assert forwards <= 2

    for turns in range(12):
        run_virtually(scenario(turns))


@pytest.mark.parametrize("error", [ValueError, StopIteration])
def test_a_failed_forward_leaves_nothing_behind(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Broken by an error whose trace holds a frame that holds the error."""
    caplog.set_level(logging.CRITICAL)  # records that are kept hold errors
    held: list[weakref.ref[Payload]] = []

    def forward() -> MicrobatchResult:
        payload = Payload()
        held.append(weakref.ref(payload))
        raise error("no")

    async def scenario() -> None:
        scheduler = scheduler_of(Threaded(thread, forward))
        asked = [
            asyncio.ensure_future(scheduler.submit(work_of(1, seed=seed), Terms()))
            for seed in (1, 2)
        ]
        assert [await reason_of(each) for each in asked] == [Reason.REPLICA_FAILED] * 2
        await scheduler.stop()

    gc.collect()
    gc.disable()
    try:
        with ThreadPoolExecutor(1) as thread:
            asyncio.run(scenario())
        assert len(held) == 3 and [each() for each in held] == [None] * 3
    finally:
        gc.enable()


def test_a_failed_request_is_freed_with_its_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Broken by ``del job`` left out of ``Scheduler.submit``: the latents of a large request would
    stay until the collector comes by."""
    caplog.set_level(logging.CRITICAL)  # records that are kept hold errors

    async def act() -> None:
        raise MemoryError("out of device memory")

    async def scenario() -> weakref.ref[Work]:
        scheduler = scheduler_of(Replica(act))
        work = work_of(1, seed=1)
        held = weakref.ref(work)
        asked = scheduler.submit(work, Terms())
        del work
        reason = None
        try:  # not by ``pytest.raises``, which keeps the error in a cycle of its own
            await asked
        except RequestError as error:
            reason = error.reason
        assert reason is Reason.REPLICA_FAILED
        del asked
        await scheduler.stop()
        return held

    gc.collect()
    gc.disable()
    try:
        assert run_virtually(scenario())() is None
    finally:
        gc.enable()


def test_a_thread_that_takes_no_more_work_fails_the_requests() -> None:
    thread = ThreadPoolExecutor(1)
    thread.shutdown()

    async def scenario() -> None:
        scheduler = scheduler_of(Threaded(thread, lambda: MicrobatchResult([], 0.0)))
        for seed in (1, 2):
            asked = scheduler.submit(work_of(1, seed=seed), Terms())
            assert await reason_of(asked) is Reason.REPLICA_FAILED
        await scheduler.stop()

    asyncio.run(scenario())
