"""StreamGradients: every request is answered once, out of order, and fails alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np

from carv.errors import STATUS_CODES, Reason
from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.admission import Admission
from carv_server.gradient_stream import GradientStream
from carv_server.messages import MessageParser
from carv_server.observability.observability import Observability
from carv_server.request import RequestLimits
from carv_server.service import Call
from tests.server.streamed import Stream, details_of
from tests.server.teachers import (
    FaultyTeacher,
    GatedTeacher,
    oracle_teacher,
    running,
    waiting,
)
from tests.server.wire import (
    create_async,
    estimate_request,
    latents,
    path,
)

BUSY = 900
"""Timestep of the request that keeps a gated teacher waiting."""


def at(timestep: int, handle: str, draws: int = 1) -> pb.EstimateGradientRequest:
    """All draws at one timestep, so that forwards show whose rows they run."""
    request = estimate_request([handle], renders=1)
    request.explicit_draws.timesteps.CopyFrom(encode_tensor(np.full((1, draws), timestep)))
    request.explicit_draws.noise_indices.CopyFrom(encode_tensor(np.arange(draws)[None]))
    return request


async def alone(channel: grpc.aio.Channel, request: pb.EstimateGradientRequest) -> np.ndarray:
    data = await channel.unary_unary(path("EstimateGradient"))(request.SerializeToString())
    return decode_tensor(pb.EstimateGradientResponse.FromString(data).gradient)


async def busy(stream: Stream, teacher: GatedTeacher, handle: str) -> None:
    """Request 0 is in a forward that waits for the gate."""
    await stream.ask(0, at(BUSY, handle))
    assert await asyncio.to_thread(teacher.entered.wait, 10)


def test_64_in_flight_are_answered_out_of_order_each_as_if_alone() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        async with running(teacher) as (server, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            await busy(stream, teacher, handle)
            asked = {1: estimate_request([handle], renders=2, draws=512, seed=1)}
            asked |= {i: estimate_request([handle], 2, 4, seed=i) for i in range(2, 64)}
            for number, request in asked.items():
                await stream.ask(number, request)
            await waiting(server, 63)
            teacher.gate.set()
            answers = await stream.answers(64)
            assert set(answers) == set(range(64))
            assert list(answers).index(1) > 8, "short requests pass the long one"
            for number, request in asked.items():
                found = answers[number].estimate
                assert found.seed == number
                # The microbatches differ, and with them the order of float32 sums.
                np.testing.assert_allclose(
                    decode_tensor(found.gradient), await alone(channel, request), atol=1e-5
                )
            await stream.half_close()
            await stream.ended()

    asyncio.run(main())


Change = Callable[[pb.StreamGradientsRequest], object]


def _set(**values: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return change


BAD: dict[str, tuple[Change, str, set[str]]] = {
    "no action": (lambda m: m.ClearField("action"), "INVALID_FIELD", {"action"}),
    "no time": (_set(timeout_seconds=0.0), "INVALID_FIELD", {"timeout_seconds"}),
    "less time": (_set(timeout_seconds=-1.0), "INVALID_FIELD", {"timeout_seconds"}),
    "time without end": (
        _set(timeout_seconds=float("inf")),
        "INVALID_FIELD",
        {"timeout_seconds"},
    ),
    "time that is no number": (
        _set(timeout_seconds=float("nan")),
        "INVALID_FIELD",
        {"timeout_seconds"},
    ),
    "two at once": (
        lambda m: (m.ClearField("action"), _set(timeout_seconds=0.0)(m)),
        "INVALID_FIELD",
        {"action", "timeout_seconds"},
    ),
    "no draws": (
        lambda m: _set(draws=0)(m.estimate.sampling),
        "INVALID_FIELD",
        {"sampling.draws"},
    ),
    "no latents": (
        lambda m: m.estimate.ClearField("latents"),
        "INVALID_FIELD",
        {"latents"},
    ),
    "another teacher": (
        lambda m: _set(teacher="nobody")(m.estimate),
        "TEACHER_NOT_FOUND",
        {"teacher"},
    ),
    "conditioning gone": (
        lambda m: m.estimate.objective.branches[0].conditionings.__setitem__(0, "gone"),
        "CONDITIONING_NOT_FOUND",
        {"objective.branches[0].conditionings[0]"},
    ),
    "latents gone": (
        lambda m: _set(latents_handle="gone")(m.estimate),
        "LATENTS_NOT_FOUND",
        {"latents_handle"},
    ),
    "too large": (
        lambda m: m.estimate.latents.CopyFrom(encode_tensor(latents(200))),
        "MESSAGE_TOO_LARGE",
        {"request"},
    ),
}


def test_a_bad_request_is_answered_with_its_own_status_and_the_stream_goes_on() -> None:
    async def main() -> None:
        async with running(oracle_teacher(), max_message_bytes=96 * 1024) as (_, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            for number, (change, reason, fields) in enumerate(BAD.values()):
                message = pb.StreamGradientsRequest(id=number, estimate=estimate_request([handle]))
                change(message)
                if reason == "MESSAGE_TOO_LARGE":
                    message.estimate.objective.reference_latents.CopyFrom(message.estimate.latents)
                    message.estimate.objective.reference_latents.data *= 3
                await stream.send(message)
                answer = await stream.answer()
                details = details_of(answer)
                assert answer.id == number
                assert (details.reason, {v.field for v in details.violations}) == (reason, fields)
                assert answer.error.code == STATUS_CODES[Reason(reason)]
            await stream.ask(1000, estimate_request([handle]))
            assert (await stream.answer()).HasField("estimate")

    asyncio.run(main())


def test_a_result_that_is_not_finite_fails_its_request_alone() -> None:
    async def main() -> None:
        async with running(FaultyTeacher(nan_at=1, raise_at=2)) as (_, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            for timestep in (1, 2, 3):
                await stream.ask(timestep, at(timestep, handle))
            answers = await stream.answers(3)
            assert details_of(answers[1]).reason == "NON_FINITE_RESULT"
            assert details_of(answers[2]).reason == "REPLICA_FAILED"
            assert answers[3].HasField("estimate")

    asyncio.run(main())


def test_bytes_that_are_no_message_end_the_stream() -> None:
    async def main() -> None:
        async with running(oracle_teacher()) as (_, channel):
            stream = Stream(channel)
            await stream.send(b"\xff")
            failure = await stream.failure()
            assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
            assert (failure.reason, failure.domain) == ("MALFORMED_MESSAGE", "carv")

    asyncio.run(main())


def test_an_id_in_flight_is_refused_and_free_again_once_answered() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        async with running(teacher) as (_, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            await busy(stream, teacher, handle)
            await stream.ask(0, at(5, handle))
            refused = details_of(await stream.answer())
            assert (refused.reason, refused.violations[0].field) == ("INVALID_FIELD", "id")
            teacher.gate.set()
            assert (await stream.answer()).HasField("estimate"), (
                "the first is answered none the less"
            )
            await stream.ask(0, at(5, handle))
            assert (await stream.answer()).HasField("estimate")

    asyncio.run(main())


def test_more_than_fit_are_refused_at_once_and_nothing_else_is_lost() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        limits = RequestLimits(max_stream_requests=2)
        async with running(teacher, limits=limits) as (_, channel):
            handle = await create_async(channel)
            stream, beside = Stream(channel), Stream(channel)
            await busy(stream, teacher, handle)
            await stream.ask(1, at(1, handle))
            await stream.ask(2, at(2, handle))
            answer = await stream.answer()
            details = details_of(answer)
            assert (answer.id, details.reason) == (2, "QUEUE_FULL")
            assert answer.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            assert details.retry_delay_seconds is not None and details.retry_delay_seconds > 0
            await beside.ask(7, at(7, handle))  # the bound is each stream's own
            teacher.gate.set()
            answers = await stream.answers(2)
            assert set(answers) == {0, 1}
            assert all(answer.HasField("estimate") for answer in answers.values())
            assert (await beside.answer()).HasField("estimate")
            # A place is free as soon as its answer is there: as many again, at once, many times.
            for i in range(10, 40, 2):
                await stream.ask(i, at(3, handle))
                await stream.ask(i + 1, at(3, handle))
                assert all(a.HasField("estimate") for a in (await stream.answers(2)).values())

    asyncio.run(main())


def test_the_limit_is_stated() -> None:
    async def main() -> None:
        limits = RequestLimits(max_stream_requests=5)
        async with running(oracle_teacher(), limits=limits) as (_, channel):
            data = await channel.unary_unary(path("GetTeacher"))(b"")
            stated = pb.GetTeacherResponse.FromString(data).teacher.limits
            assert stated.max_stream_requests == 5

    asyncio.run(main())


def test_a_cancelled_request_is_answered_so_and_never_computed() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        limits = RequestLimits(max_stream_requests=3)
        async with running(teacher, limits=limits) as (server, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            await busy(stream, teacher, handle)
            await stream.ask(1, at(111, handle))
            await stream.ask(2, at(222, handle))
            await waiting(server, 2)
            await stream.cancel(1)
            answer = await stream.answer()
            assert (answer.id, details_of(answer).reason) == (1, "CANCELLED")
            await waiting(server, 1)
            await stream.cancel(1)  # answered already
            await stream.cancel(99)  # never asked
            await stream.ask(1, at(333, handle))  # id and place are free again
            teacher.gate.set()
            assert set(await stream.answers(3)) == {0, 1, 2}
            await stream.half_close()
            await stream.ended()

    asyncio.run(main())
    computed = [t for forward in teacher.forwards for t in forward]
    assert sorted(computed) == [222, 333, BUSY]


def test_a_request_that_is_cancelled_as_it_comes_is_answered_once() -> None:
    """Request and cancellation in one breath: the task has not begun."""

    async def main() -> None:
        async with running(oracle_teacher()) as (_, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            for number in range(50):
                await stream.ask(number, at(5, handle))
                await stream.cancel(number)
            assert len(await stream.answers(50)) == 50
            await stream.half_close()
            await stream.ended()

    asyncio.run(main())


def test_a_deadline_of_its_own_ends_a_request_alone() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        async with running(teacher) as (server, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            await busy(stream, teacher, handle)
            await stream.ask(1, at(111, handle), seconds=0.05)
            await stream.ask(2, at(222, handle), seconds=30.0)
            answer = await stream.answer()
            assert (answer.id, details_of(answer).reason) == (1, "DEADLINE_EXPIRED")
            assert answer.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
            await waiting(server, 1)
            teacher.gate.set()
            assert set(await stream.answers(2)) == {0, 2}

    asyncio.run(main())
    assert 111 not in [t for forward in teacher.forwards for t in forward]


def test_the_streams_deadline_ends_it_and_all_its_requests() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        async with running(teacher) as (server, channel):
            handle = await create_async(channel)
            await busy(Stream(channel), teacher, handle)
            stream = Stream(channel, timeout=1.5)
            await stream.ask(0, at(111, handle), seconds=30.0)
            await stream.ask(1, at(111, handle))
            await waiting(server, 2)
            # The server answers each at the stream's deadline, or gRPC ends the stream first.
            failure = await stream.failure(errors=2)
            assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
            await waiting(server, 0)
            teacher.gate.set()
            await asyncio.wait_for(server._front.wait_idle(), 10)

    asyncio.run(main())
    assert 111 not in [t for forward in teacher.forwards for t in forward]


def test_a_half_closed_stream_is_answered_to_the_end() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        async with running(teacher) as (_, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            await busy(stream, teacher, handle)
            await stream.ask(1, at(5, handle))
            await stream.half_close()
            teacher.gate.set()
            assert set(await stream.answers(2)) == {0, 1}
            await stream.ended()
            assert await stream.call.code() is grpc.StatusCode.OK

    asyncio.run(main())


def test_a_client_that_leaves_cancels_all_its_requests() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        async with running(teacher) as (server, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            await busy(stream, teacher, handle)
            for number in range(1, 20):
                await stream.ask(number, at(111, handle))
            await waiting(server, 19)
            stream.call.cancel()
            await waiting(server, 0)
            await asyncio.wait_for(server._front.wait_idle(), 10)
            assert server._front._admission._bytes == 0
            teacher.gate.set()
            assert (await alone(channel, at(5, handle))).shape[0] == 1, "others are served"

    asyncio.run(main())
    assert 111 not in [t for forward in teacher.forwards for t in forward]


def test_a_drain_lets_what_is_in_flight_finish_refuses_the_rest_and_ends_the_stream() -> None:
    teacher = GatedTeacher()

    async def main() -> None:
        async with running(teacher) as (server, channel):
            handle = await create_async(channel)
            stream, idle = Stream(channel), Stream(channel)
            await busy(stream, teacher, handle)
            await idle.ask(1, estimate_request([handle], draws=0))
            assert details_of(await idle.answer()).reason == "INVALID_FIELD"
            drained = asyncio.create_task(server.drain())
            failure = await idle.failure()
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            await stream.ask(1, at(5, handle))
            answer = await stream.answer()
            assert (answer.id, details_of(answer).reason) == (1, "DRAINING")
            assert details_of(answer).retry_delay_seconds is not None
            late = Stream(channel)
            assert (await late.failure()).reason == "DRAINING"
            assert not drained.done()
            teacher.gate.set()
            answer = await stream.answer()
            assert answer.id == 0 and answer.HasField("estimate")
            assert (await stream.failure()).reason == "DRAINING"
            await asyncio.wait_for(drained, 10)

    asyncio.run(main())


def test_a_client_that_reads_nothing_is_read_no_further() -> None:
    """Answers that wait to be written are bounded, though their places are free."""
    most, sent = 4, 100
    taken: list[int] = []
    writing = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        for number in range(sent):
            taken.append(number)
            message = pb.StreamGradientsRequest(id=number, estimate=pb.EstimateGradientRequest())
            yield message.SerializeToString()
            await asyncio.sleep(0)

    async def estimate(
        request: pb.EstimateGradientRequest, call: Call
    ) -> pb.EstimateGradientResponse:
        return pb.EstimateGradientResponse()

    written: list[int] = []

    async def write(data: bytes) -> None:
        await writing.wait()
        answer = pb.StreamGradientsResponse.FromString(data)
        assert answer.HasField("estimate"), "none is refused"
        written.append(answer.id)

    async def main() -> None:
        with ThreadPoolExecutor(1) as workers:
            admission = Admission(1 << 20)
            stream = GradientStream(
                write,
                estimate,
                admission,
                MessageParser(workers),
                time.monotonic,
                None,
                "",
                most,
                Observability().begin("StreamGradients", "", lambda: ()),
            )
            running = asyncio.create_task(stream.run(requests()))
            for _ in range(200):
                await asyncio.sleep(0)
            assert len(taken) <= 2 * most
            writing.set()
            await asyncio.wait_for(running, 10)
            assert sorted(written) == list(range(sent))
            await asyncio.wait_for(admission.wait_idle(), 1)

    asyncio.run(main())
