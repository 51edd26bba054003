"""The front's streams: counted, refused and ended like every other call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from carv.errors import Reason
from carv.v1 import teacher_service_pb2 as pb
from carv_server.errors import RequestError
from carv_server.front import Front
from carv_server.service import Call, TeacherService
from tests.server.wire import Failure, failure_of, path

Handle = Callable[[Any, Call], Any]


@asynccontextmanager
async def served(handle: Handle) -> AsyncIterator[tuple[Front, grpc.aio.Channel]]:
    """A front whose ListTeachers is this stream."""
    with ThreadPoolExecutor(1) as workers:
        front = Front(cast(TeacherService, None), 1 << 16, workers, time.monotonic, 4)
        handlers = {"ListTeachers": front._stream(pb.ListTeachersRequest, handle)}
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(front.service_name, handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield front, channel
        finally:
            await server.stop(0)


def start(channel: grpc.aio.Channel, data: bytes = b"", timeout: float | None = 10.0) -> Any:
    return channel.unary_stream(path("ListTeachers"))(data, timeout=timeout)


async def failure(call: Any) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return failure_of(caught.value)


async def counting(request: Message, call: Call) -> AsyncIterator[Message]:
    for i in range(3):
        yield pb.GetTeacherRequest(teacher=str(i))


async def broken(request: Message, call: Call) -> AsyncIterator[Message]:
    yield pb.GetTeacherRequest()
    raise RequestError(Reason.NON_FINITE_RESULT, "render 3")


async def defective(request: Message, call: Call) -> AsyncIterator[Message]:
    yield pb.GetTeacherRequest()
    raise KeyError("secret")


def test_replies_arrive_in_order_and_the_front_is_idle_after_them() -> None:
    async def main() -> None:
        async with served(counting) as (front, channel):
            pieces = [pb.GetTeacherRequest.FromString(piece) async for piece in start(channel)]
            assert [piece.teacher for piece in pieces] == ["0", "1", "2"]
            await asyncio.wait_for(front.wait_idle(), 5)
            assert front._admission._bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("handle", "data", "reason"),
    [
        (broken, b"", "NON_FINITE_RESULT"),
        (defective, b"", "INTERNAL"),
        (counting, b"\xff", "MALFORMED_MESSAGE"),
        (counting, bytes(1 << 17), "MESSAGE_TOO_LARGE"),
    ],
)
def test_errors_end_a_stream_as_they_end_a_call(handle: Handle, data: bytes, reason: str) -> None:
    async def main() -> None:
        async with served(handle) as (front, channel):
            found = await failure(start(channel, data))
            assert (found.reason, found.domain) == (reason, "carv")
            assert "secret" not in found.message
            await asyncio.wait_for(front.wait_idle(), 5)

    asyncio.run(main())


@pytest.mark.parametrize("slow_client", [False, True], ids=["computing", "writing"])
@pytest.mark.parametrize("ending", ["cancelled", "expired"])
def test_a_client_that_leaves_ends_the_work_at_once(slow_client: bool, ending: str) -> None:
    """Wherever the server waits: in the handler, or for a client that reads nothing."""
    ended: list[str] = []

    async def endless(request: Message, call: Call) -> AsyncIterator[Message]:
        assert (call.deadline is not None) == (ending == "expired")
        try:
            while True:
                yield pb.GetTeacherRequest(teacher="x" * (1 << 20 if slow_client else 1))
                await asyncio.sleep(0.0 if slow_client else 60.0)
        finally:
            ended.append(ending)

    async def main() -> None:
        async with served(endless) as (front, channel):
            await asyncio.wait_for(channel.channel_ready(), 20)
            call = start(channel, timeout=1.5 if ending == "expired" else None)
            await call.read()
            if ending == "cancelled":
                await asyncio.sleep(0.2)
                call.cancel()
            await asyncio.wait_for(front.wait_idle(), 5)
            assert ended == [ending]

    asyncio.run(main())


def test_a_draining_front_refuses_new_streams_and_lets_open_ones_end() -> None:
    proceed = asyncio.Event()

    async def two(request: Message, call: Call) -> AsyncIterator[Message]:
        yield pb.GetTeacherRequest()
        await proceed.wait()
        yield pb.GetTeacherRequest()

    async def main() -> None:
        async with served(two) as (front, channel):
            pieces = aiter(start(channel))
            await anext(pieces)
            front.drain()
            assert (await failure(start(channel))).reason == "DRAINING"
            proceed.set()
            assert len([piece async for piece in pieces]) == 1
            await asyncio.wait_for(front.wait_idle(), 5)

    asyncio.run(main())
