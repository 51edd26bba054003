"""A full queue, cancellation and deadlines in compute, priority: over the wire, on a device that
the test holds or that takes a known time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from carv.tensors import encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.scheduling.fair_queue import Waiting
from carv_server.serve import RunningServer
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.server.teachers import GatedTeacher, running, waiting
from tests.server.wire import Failure, create_async, estimate_request, failure_of, path
from tests.support.timed import SHAPE, timed_request, unconditional_request
from tests.support.until import until

BUDGET = 8


async def _ended(call: Any) -> bytes | Failure:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error)


def _at(timestep: int, handle: str, draws: int, priority: int = 0) -> bytes:
    """One render, all draws at one timestep: forwards can tell whose rows they run."""
    request = estimate_request([handle], renders=1)
    request.explicit_draws.timesteps.CopyFrom(encode_tensor(np.full((1, draws), timestep)))
    request.explicit_draws.noise_indices.CopyFrom(encode_tensor(np.arange(draws)[None]))
    request.priority = priority
    return request.SerializeToString()


def _scheduler(server: RunningServer) -> Scheduler:
    return server._served["mixture"].scheduler


def test_a_full_queue_refuses_the_surplus_and_only_it_at_once() -> None:
    """40 requests of one evaluation wait in a queue of 40; of 30 more each is refused with
    RetryInfo, in 50 ms in the median, and all 40 are answered. Broken by a bound that is off by
    one, by refusals without a delay, and by refusing only what has waited."""

    async def scenario() -> None:
        teacher = GatedTeacher()
        config = SchedulerConfig(evaluation_budget=BUDGET, max_waiting_evaluations=40)
        async with running(teacher, scheduler=config) as (server, channel):
            handle = await create_async(channel)
            estimate: Any = channel.unary_unary(path("EstimateGradient"))
            first = estimate(_at(1, handle, BUDGET), timeout=30)
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            admitted = [estimate(_at(2, handle, 1), timeout=30) for _ in range(40)]
            await waiting(server, 40)
            seconds: list[float] = []
            for _ in range(30):
                begun = time.perf_counter()
                failure = await _ended(estimate(_at(3, handle, 1), timeout=30))
                seconds.append(time.perf_counter() - begun)
                assert isinstance(failure, Failure)
                assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert failure.reason == "QUEUE_FULL"
                assert failure.retry_delay_seconds and failure.retry_delay_seconds > 0
            assert statistics.median(seconds) < 0.05
            assert _scheduler(server).snapshot().refused == 30
            assert not any(call.done() for call in admitted)
            teacher.gate.set()
            for call in (first, *admitted):
                assert pb.EstimateGradientResponse.FromString(await call).draws_spent
            assert sum(map(len, teacher.forwards)) == BUDGET + 40, "the surplus was computed"

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["cancelled", "deadline", "cancelled on a stream"])
def test_slots_of_what_ends_in_compute_return_within_one_microbatch(how: str) -> None:
    """1024 rows, of which 8 are in each forward of 60 ms: at most the microbatch that runs and the
    one bound behind it are still evaluated, nothing of it is left in the gauges, and another
    request is served next. Broken by a handler that
    shields its estimate from cancellation."""

    async def scenario() -> None:
        timing = DeviceTiming(0.06, 0.0)
        config = SchedulerConfig(evaluation_budget=BUDGET)
        async with running(SimulatedTeacher(SHAPE, timing), scheduler=config) as (server, channel):
            made = await channel.unary_unary(path("CreateConditioning"))(unconditional_request())
            handle = pb.CreateConditioningResponse.FromString(made).conditionings[0].handle
            estimate: Any = channel.unary_unary(path("EstimateGradient"))
            scheduler = _scheduler(server)
            end = await _under_way(channel, how, timed_request(handle, 1024), scheduler)
            await end()
            await until(lambda: scheduler.waiting == Waiting(0, 0), "nothing waits")
            ended_at = scheduler.snapshot().evaluations
            await estimate(timed_request(handle, 1, seed=1), timeout=30)
            snapshot = scheduler.snapshot()
            # What runs, what is bound behind it, and its own.
            assert snapshot.evaluations - ended_at <= 2 * BUDGET + 1
            await until(
                lambda: scheduler.snapshot().replicas[0].evaluations_in_flight == 0,
                "nothing is in flight",
            )
            assert scheduler.snapshot().tenants == {}
            assert snapshot.cancelled + snapshot.expired == 1
            assert snapshot.evaluations < 1024 / 2, "it was computed all the same"

    asyncio.run(scenario())


def test_calls_that_end_with_their_deadline_are_no_errors_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The queue ends a request at its deadline, and so does gRPC, which then takes no status for
    it any more. Broken by passing on what ``context.abort`` raises then."""

    async def scenario() -> None:
        teacher = GatedTeacher(120.0)
        async with running(teacher) as (_, channel):
            handle = await create_async(channel)
            estimate: Any = channel.unary_unary(path("EstimateGradient"))
            first = estimate(_at(1, handle, 1), timeout=120)
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            data = _at(2, handle, 1)
            for _ in range(4):
                calls = [estimate(data, timeout=0.05 + 0.001 * i) for i in range(500)]
                ended = await asyncio.gather(*map(_ended, calls))
                assert {getattr(each, "code", None) for each in ended} == {
                    grpc.StatusCode.DEADLINE_EXCEEDED
                }
            teacher.gate.set()
            await first
        assert sum(map(len, teacher.forwards)) == 1

    asyncio.run(scenario())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def _under_way(
    channel: grpc.aio.Channel, how: str, data: bytes, scheduler: Scheduler
) -> Callable[[], Any]:
    """Start a request, wait until its rows are being computed; what ends it."""
    if how == "cancelled on a stream":
        stream: Any = channel.stream_stream(path("StreamGradients"))(timeout=60)
        good = pb.EstimateGradientRequest.FromString(data)
        await stream.write(pb.StreamGradientsRequest(id=1, estimate=good).SerializeToString())

        async def leave() -> None:
            cancel = pb.StreamGradientsRequest(id=1, cancel=pb.CancelGradient())
            await stream.write(cancel.SerializeToString())
            answer = pb.StreamGradientsResponse.FromString(await stream.read())
            assert answer.error.code == grpc.StatusCode.CANCELLED.value[0]

        await until(lambda: scheduler.snapshot().microbatches >= 2, "a second microbatch")
        return leave
    timeout = 2.0 if how == "deadline" else 60.0
    call: Any = channel.unary_unary(path("EstimateGradient"))(data, timeout=timeout)
    await until(lambda: scheduler.snapshot().microbatches >= 2, "a second microbatch")

    async def end() -> None:
        if how == "cancelled":
            call.cancel()
            assert await call.code() == grpc.StatusCode.CANCELLED
        else:
            failure = await _ended(call)
            assert isinstance(failure, Failure)
            assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED

    return end


def test_priority_of_a_request_reaches_the_device() -> None:
    """Among one tenant's waiting requests the highest goes first, whatever their order of arrival.
    Broken by ``terms`` without the request's priority."""

    async def scenario() -> list[int]:
        teacher = GatedTeacher()
        config = SchedulerConfig(evaluation_budget=BUDGET)
        async with running(teacher, scheduler=config) as (server, channel):
            handle = await create_async(channel)
            estimate: Any = channel.unary_unary(path("EstimateGradient"))
            calls = [estimate(_at(1, handle, BUDGET), timeout=30)]
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            for count, priority in enumerate((0, -10, 10, 1, -1), start=1):
                data = _at(100 + priority, handle, BUDGET, priority)
                calls.append(estimate(data, timeout=30))
                await waiting(server, count)
            teacher.gate.set()
            await asyncio.gather(*calls)
        return [forward[0] for forward in teacher.forwards]

    assert asyncio.run(scenario()) == [1, 110, 101, 100, 99, 90]
