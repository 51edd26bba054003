"""gRPC's interoperability cases (doc/interop-test-descriptions.md of the gRPC repository) with our
own methods in the place of its test service.

Left out: what compression and status a test service is told to answer with, since ours answers as
it must, and cases of authentication by clouds. Each case says what breaks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.server.teachers import GatedTeacher, SlowTeacher, running
from tests.server.wire import create_async, estimate_request, failure_of, path
from tests.support.timed import unconditional_request

LARGE = (8, 64, 64)  # 128 KiB a render
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def _run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def _idle(server: RunningServer) -> None:
    """Until nothing is in flight on the server, well before the gate opens or a paced call ends by
    itself."""
    await asyncio.wait_for(server._front.wait_idle(), 10.0)


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


@asynccontextmanager
async def _gated() -> AsyncIterator[tuple[RunningServer, grpc.aio.Channel, GatedTeacher, bytes]]:
    """And a good request, which waits at the gate."""
    teacher = GatedTeacher()
    async with running(teacher) as (server, channel):
        try:
            request = estimate_request([await create_async(channel)])
            yield server, channel, teacher, request.SerializeToString()
        finally:
            teacher.gate.set()


def test_empty_unary() -> None:
    """Broken by a handler that wants at least one byte."""

    async def scenario() -> None:
        async with running(GatedTeacher()) as (_, channel):
            reply = await channel.unary_unary(path("ListTeachers"))(b"")
            assert len(pb.ListTeachersResponse.FromString(reply).teachers) == 1

    _run(scenario())


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_large_and_compressed_unary(compression: grpc.Compression) -> None:
    """5 MiB there and back, above gRPC's default limit of 4. Broken by leaving out
    ``grpc.max_receive_message_length``, and by switching off a compression."""

    async def scenario() -> None:
        teacher = SimulatedTeacher(LARGE, DeviceTiming(0.0, 0.0))
        async with (
            running(teacher) as (server, _),
            grpc.aio.insecure_channel(
                server.address, options=UNLIMITED, compression=compression
            ) as channel,
        ):
            made = await channel.unary_unary(path("CreateConditioning"))(unconditional_request())
            handle = pb.CreateConditioningResponse.FromString(made).conditionings[0].handle
            x = np.random.default_rng(0).normal(size=(40, *LARGE)).astype(np.float32)
            request = pb.EstimateGradientRequest(latents=encode_tensor(x), seed=1)
            request.objective.branches.add(conditionings=[handle]).coefficient.constant = 1.0
            request.sampling.draws = 1
            data = request.SerializeToString()
            assert len(data) > 5 << 20
            reply = await channel.unary_unary(path("EstimateGradient"))(data, timeout=60)
            gradient = decode_tensor(pb.EstimateGradientResponse.FromString(reply).gradient)
            assert gradient.shape == x.shape and len(reply) > 5 << 20

    _run(scenario())


def test_empty_stream() -> None:
    """Broken by a stream that waits for a first request after the client has closed."""

    async def scenario() -> None:
        async with running(GatedTeacher()) as (_, channel):
            call: Any = channel.stream_stream(path("StreamGradients"))(timeout=10)
            await call.done_writing()
            assert [reply async for reply in call] == []
            assert await call.code() == grpc.StatusCode.OK

    _run(scenario())


def test_ping_pong() -> None:
    """Each answer comes before the next request is sent. Broken by answers that wait for the end
    of the requests."""

    async def scenario() -> None:
        async with _gated() as (_, channel, teacher, data):
            teacher.gate.set()
            call: Any = channel.stream_stream(path("StreamGradients"))(timeout=20)
            for number in (1, 2, 3, 4):
                estimate = pb.EstimateGradientRequest.FromString(data)
                request = pb.StreamGradientsRequest(id=number, estimate=estimate)
                await call.write(request.SerializeToString())
                answer = pb.StreamGradientsResponse.FromString(await call.read())
                assert answer.id == number and answer.HasField("estimate")
            await call.done_writing()
            assert await call.code() == grpc.StatusCode.OK

    _run(scenario())


def test_cancel_after_begin() -> None:
    """Before any request, and with one at the device: the call ends as CANCELLED, and the server
    lets go of it at once. Broken by a handler that shields its work from cancellation."""

    async def scenario() -> None:
        async with _gated() as (server, channel, teacher, data):
            call: Any = channel.stream_stream(path("StreamGradients"))(timeout=20)
            await call.wait_for_connection()
            call.cancel()
            assert await call.code() == grpc.StatusCode.CANCELLED
            unary: Any = channel.unary_unary(path("EstimateGradient"))(data, timeout=20)
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            assert not server._front._admission._idle.is_set()
            unary.cancel()
            assert await unary.code() == grpc.StatusCode.CANCELLED
            await _idle(server)

    _run(scenario())


def test_cancel_after_first_response() -> None:
    """Of a call whose draws take 20 s. Broken by a stream that goes on without its client."""

    async def scenario() -> None:
        config = SchedulerConfig(evaluation_budget=16)
        async with running(SlowTeacher(), scheduler=config) as (server, channel):
            good = estimate_request([await create_async(channel)])
            request = pb.RefineGradientRequest(
                latents=good.latents, objective=good.objective, max_seconds=20.0
            )
            request.target_relative_standard_error = 1e-6
            call: Any = channel.unary_stream(path("RefineGradient"))(request.SerializeToString())
            assert not pb.RefineGradientResponse.FromString(await call.read()).final
            call.cancel()
            assert await call.code() == grpc.StatusCode.CANCELLED
            await _idle(server)

    _run(scenario())


def test_timeout_on_a_sleeping_server() -> None:
    """Broken by a server that lets a call go on at its deadline."""

    async def scenario() -> None:
        async with _gated() as (server, channel, _, data):
            call: Any = channel.unary_unary(path("EstimateGradient"))(data, timeout=0.2)
            assert await _code(call) == grpc.StatusCode.DEADLINE_EXCEEDED
            await _idle(server)

    _run(scenario())


@pytest.mark.parametrize(
    "method", ["/carv.v1.TeacherService/Unknown", "/carv.v1.Nobody/EstimateGradient", "/x", "/"]
)
def test_unimplemented_method_and_service(method: str) -> None:
    """Broken by a generic handler that answers to any name."""

    async def scenario() -> None:
        async with running(GatedTeacher()) as (_, channel):
            assert await _code(channel.unary_unary(method)(b"")) == grpc.StatusCode.UNIMPLEMENTED
            assert await channel.unary_unary(path("ListTeachers"))(b"")

    _run(scenario())


METADATA = [
    ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
    ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab\x00"),
    ("user-agent", "somebody else's"),
    ("x-empty", ""),
    ("x-many", "one"),
    ("x-many", "two"),
]


@pytest.mark.parametrize("metadata", [METADATA, [("x-long", "m" * 48_000)]], ids=["odd", "long"])
def test_custom_metadata_does_no_harm(metadata: Sequence[tuple[str, str | bytes]]) -> None:
    """Ours echoes none. Broken by a limit on metadata below 48 kB, and by an interceptor that
    decodes values as text."""

    async def scenario() -> None:
        async with _gated() as (_, channel, teacher, data):
            teacher.gate.set()
            unary: Any = channel.unary_unary(path("EstimateGradient"))
            assert await unary(data, metadata=metadata)
            stream: Any = channel.stream_stream(path("StreamGradients"))
            call = stream(metadata=metadata, timeout=20)
            good = pb.EstimateGradientRequest.FromString(data)
            request = pb.StreamGradientsRequest(id=1, estimate=good)
            await call.write(request.SerializeToString())
            await call.done_writing()
            answers = [pb.StreamGradientsResponse.FromString(reply) async for reply in call]
            assert len(answers) == 1 and answers[0].HasField("estimate")

    _run(scenario())


def test_metadata_beyond_its_limit_is_refused() -> None:
    """Broken by no limit: a call with 200 kB of metadata would be served."""

    async def scenario() -> None:
        async with running(GatedTeacher()) as (_, channel):
            call: Any = channel.unary_unary(path("ListTeachers"))
            code = await _code(call(b"", metadata=[("x-long", "m" * 200_000)]))
            assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            assert await call(b"")

    _run(scenario())


def test_special_status_message() -> None:
    """White space, and characters inside and outside the basic plane, arrive as they were sent;
    ``failure_of`` compares both ways. Broken by a message cut inside a character."""

    async def scenario() -> None:
        async with running(GatedTeacher()) as (_, channel):
            name = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
            request = pb.GetTeacherRequest(teacher=name).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path("GetTeacher"))(request)
            failure = failure_of(caught.value)
            assert failure.reason == "TEACHER_NOT_FOUND" and repr(name) in failure.message

    _run(scenario())
