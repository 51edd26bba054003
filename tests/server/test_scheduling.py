"""The queue: short requests pass long ones, rows nobody waits for are not computed, and it is
bounded."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch

from carv.errors import Reason
from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.errors import RequestError
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.protocol import Branch, Conditioning, Work
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.scheduling.terms import Terms
from tests.server.teachers import GatedTeacher, running
from tests.server.wire import Failure, create_async, estimate_request, failure_of, path
from tests.support.oracle import EVENT_SHAPE

LONG, SHORT, OTHER = 500, 100, 200


def _at(timestep: int, handle: str, draws: int, branches: int = 1) -> bytes:
    """One render with all of its draws at one timestep: forwards can tell whose rows they run."""
    request = estimate_request([handle] * branches, renders=1)
    request.explicit_draws.timesteps.CopyFrom(encode_tensor(np.full((1, draws), timestep)))
    request.explicit_draws.noise_indices.CopyFrom(encode_tensor(np.arange(draws)[None]))
    return request.SerializeToString()


def _estimate(channel: grpc.aio.Channel, data: bytes, timeout: float = 20.0) -> Any:
    return channel.unary_unary(path("EstimateGradient"))(data, timeout=timeout)


async def _failure(call: Any) -> Failure:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error)
    raise AssertionError("the call succeeded")


async def _entered(teacher: GatedTeacher) -> None:
    assert await asyncio.to_thread(teacher.entered.wait, 10)


async def _queued(server: Any, evaluations: int) -> None:
    """Until so many evaluations wait."""
    scheduler = server._served["mixture"].scheduler
    for _ in range(500):
        if scheduler.waiting.evaluations == evaluations:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{scheduler.waiting.evaluations} evaluations wait, not {evaluations}")


def test_short_requests_pass_a_long_one() -> None:
    async def scenario() -> None:
        teacher = GatedTeacher()
        config = SchedulerConfig(evaluation_budget=16)
        async with running(teacher, scheduler=config) as (server, channel):
            handle = await create_async(channel)
            long = _estimate(channel, _at(LONG, handle, 160))
            await _entered(teacher)
            short = _estimate(channel, _at(SHORT, handle, 4))
            other = _estimate(channel, _at(OTHER, handle, 12))
            await _queued(server, 160 - 16 + 4 + 12)
            teacher.gate.set()
            await asyncio.gather(long, short, other)
        forwards = teacher.forwards
        assert forwards[0] == [LONG] * 16
        # Shares of the second forward: 4 in full, then 6 and 6.
        assert sorted(forwards[1]) == [SHORT] * 4 + [OTHER] * 6 + [LONG] * 6
        assert forwards[2].count(OTHER) == 6 and forwards[2].count(LONG) == 10
        assert all(len(forward) == 16 for forward in forwards)
        assert sum(forward.count(LONG) for forward in forwards) == 160

    asyncio.run(scenario())


def test_many_guided_requests_fill_every_microbatch() -> None:
    async def scenario() -> None:
        teacher = GatedTeacher()
        async with running(teacher, scheduler=SchedulerConfig(evaluation_budget=64)) as (
            server,
            channel,
        ):
            handle = await create_async(channel)
            first = _estimate(channel, _at(LONG, handle, 1))
            await _entered(teacher)
            # 40 requests of 4 draws by 2 branches; antithetic pairs would be groups of 4.
            data = estimate_request([handle, handle], renders=1).SerializeToString()
            calls = [_estimate(channel, data) for _ in range(40)]
            await _queued(server, 40 * 8)
            teacher.gate.set()
            await asyncio.gather(first, *calls)
        assert [len(forward) for forward in teacher.forwards] == [1, 64, 64, 64, 64, 64]

    asyncio.run(scenario())


def test_cancelled_and_expired_rows_never_reach_the_teacher() -> None:
    """Broken by a handler that shields its estimate from cancellation."""

    async def scenario() -> None:
        teacher = GatedTeacher()
        async with running(teacher) as (server, channel):
            handle = await create_async(channel)
            first = _estimate(channel, _at(LONG, handle, 2))
            await _entered(teacher)
            cancelled = _estimate(channel, _at(SHORT, handle, 3))
            expiring = _estimate(channel, _at(OTHER, handle, 5), timeout=1.2)
            await _queued(server, 8)
            cancelled.cancel()
            failure = await _failure(expiring)
            await _queued(server, 0)
            last = _estimate(channel, _at(LONG + 1, handle, 4))
            await _queued(server, 4)
            teacher.gate.set()
            await asyncio.gather(first, last)
            assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert teacher.forwards == [[LONG] * 2, [LONG + 1] * 4]

    asyncio.run(scenario())


def test_a_hundred_calls_cancelled_in_the_queue_cost_no_forward() -> None:
    """Broken by jobs that stay in the queue when their call ends (``discard`` in ``submit``)."""

    async def scenario() -> None:
        teacher = GatedTeacher()
        async with running(teacher) as (server, channel):
            handle = await create_async(channel)
            first = _estimate(channel, _at(LONG, handle, 2))
            await _entered(teacher)
            calls = [_estimate(channel, _at(SHORT, handle, 3)) for _ in range(100)]
            await _queued(server, 300)
            for call in calls:
                call.cancel()
            await _queued(server, 0)  # the gate is closed: no forward took them out
            scheduler = server._served["mixture"].scheduler
            assert scheduler.waiting.requests == 0 and scheduler.snapshot().tenants == {}
            teacher.gate.set()
            await first
        assert teacher.forwards == [[LONG] * 2]

    asyncio.run(scenario())


def test_a_full_queue_refuses_with_a_delay_and_then_recovers() -> None:
    async def scenario() -> None:
        teacher = GatedTeacher()
        config = SchedulerConfig(evaluation_budget=8, max_waiting_evaluations=20)
        async with running(teacher, scheduler=config) as (server, channel):
            handle = await create_async(channel)
            running_now = _estimate(channel, _at(LONG, handle, 8))
            await _entered(teacher)
            waiting = [_estimate(channel, _at(LONG, handle, 10)) for _ in range(2)]
            await _queued(server, 20)
            failure = await _failure(_estimate(channel, _at(SHORT, handle, 1)))
            assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (failure.reason, failure.domain) == ("QUEUE_FULL", "carv")
            assert failure.retry_delay_seconds is not None and failure.retry_delay_seconds > 0
            teacher.gate.set()
            await asyncio.gather(running_now, *waiting)
            reply = await _estimate(channel, _at(SHORT, handle, 1))
            assert pb.EstimateGradientResponse.FromString(reply).draws_spent == 1

    asyncio.run(scenario())


def test_a_request_above_the_bound_runs_when_nothing_waits() -> None:
    async def scenario() -> None:
        teacher = GatedTeacher()
        teacher.gate.set()
        config = SchedulerConfig(evaluation_budget=8, max_waiting_evaluations=20)
        async with running(teacher, scheduler=config) as (_, channel):
            reply = await _estimate(channel, _at(SHORT, await create_async(channel), 50))
        estimate = pb.EstimateGradientResponse.FromString(reply)
        assert estimate.evaluations_spent == sum(map(len, teacher.forwards)) == 50
        assert decode_tensor(estimate.diagnostics.effective_sample_size).tolist() == [50.0]

    asyncio.run(scenario())


def test_rows_past_their_deadline_are_dropped_before_a_forward() -> None:
    """The queue's own clock decides, whether or not gRPC has noticed yet. Broken by ``Job.wanted``
    that does not look at the deadline."""

    async def scenario() -> None:
        teacher = GatedTeacher()
        teacher.gate.set()
        with ThreadPoolExecutor(1) as executor:
            now = 10.0
            scheduler = Scheduler(
                [InProcessReplica(teacher, executor)], SchedulerConfig(), lambda: now
            )
            submitted = asyncio.create_task(scheduler.submit(_work(SHORT), Terms(deadline=12.0)))
            in_time = asyncio.create_task(scheduler.submit(_work(LONG), Terms(deadline=14.0)))
            await asyncio.sleep(0)
            now = 13.0
            scheduler.start()
            with pytest.raises(RequestError) as caught:
                await submitted
            await in_time
            await scheduler.stop()
        assert caught.value.reason is Reason.DEADLINE_EXPIRED
        assert "4 evaluations were not computed" in caught.value.message
        assert teacher.forwards == [[LONG] * 4]

    asyncio.run(scenario())


def test_a_full_queue_is_waited_for_once_a_call_is_under_way_and_until_its_deadline() -> None:
    async def scenario() -> None:
        teacher = GatedTeacher()
        teacher.gate.set()
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as executor:
            config = SchedulerConfig(evaluation_budget=4, max_waiting_evaluations=4)
            scheduler = Scheduler([InProcessReplica(teacher, executor)], config, loop.time)
            ahead = asyncio.create_task(scheduler.submit(_work(LONG), Terms()))
            await asyncio.sleep(0)

            async def reason(seconds: float, under_way: bool) -> Reason:
                terms = Terms(deadline=loop.time() + seconds)
                with pytest.raises(RequestError) as caught:
                    await scheduler.submit_patiently(_work(SHORT), terms, lambda: under_way)
                return caught.value.reason

            assert await reason(60.0, under_way=False) is Reason.QUEUE_FULL
            begun = loop.time()
            assert await reason(0.2, under_way=True) is Reason.DEADLINE_EXPIRED
            assert 0.2 <= loop.time() - begun < 5.0
            patient = asyncio.create_task(
                scheduler.submit_patiently(
                    _work(SHORT), Terms(deadline=loop.time() + 60.0), lambda: True
                )
            )
            await asyncio.sleep(0)
            scheduler.start()
            await asyncio.gather(ahead, patient)
            await scheduler.stop()
        assert teacher.forwards == [[LONG] * 4, [SHORT] * 4]

    asyncio.run(scenario())


def _work(timestep: int) -> Work:
    """Four draws of one render, one branch."""
    zeros, index = np.zeros(4, dtype=np.int64), np.arange(4)
    ones = np.ones(4, dtype=np.float32)
    return Work(
        seed=1,
        latents=np.zeros((1, *EVENT_SHAPE), dtype=np.float32),
        reference_latents=None,
        branches=[Branch([Conditioning("label", {"class_label": torch.tensor(0)})])],
        renders=zeros,
        timesteps=zeros + timestep,
        noise_indices=index,
        groups=index,
        cells=index,
        signs=ones,
        scales=ones,
        branch_coefficients=ones[np.newaxis],
        noise_coefficients=ones,
        control_coefficients=0.0 * ones,
    )
