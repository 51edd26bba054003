"""A real grpc.aio server, in a thread of its own, that answers as a test tells it to: for what
no healthy CARV server does on demand (refuse n times, stall, forget its handles)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import Message

from carv.errors import STATUS_CODES, STATUS_METADATA_KEY, ErrorDetails, Reason, encode_status
from carv.v1 import teacher_service_pb2 as pb

REQUESTS = {
    "ListTeachers": pb.ListTeachersRequest,
    "GetTeacher": pb.GetTeacherRequest,
    "CreateConditioning": pb.CreateConditioningRequest,
    "EstimateGradient": pb.EstimateGradientRequest,
    "PredictNoise": pb.PredictNoiseRequest,
    "RefineGradient": pb.RefineGradientRequest,
    "ProfileTeacher": pb.ProfileTeacherRequest,
    "CreateLatents": pb.CreateLatentsRequest,
    "StreamGradients": pb.StreamGradientsRequest,
}
STREAMS = {"RefineGradient", "ProfileTeacher"}

DEADLINES = (0.3, 2.0, 10.0)
"""Seconds, to be tried in turn until a call came to the server in time: a machine that stands still
for longer than the deadline shows nothing."""


@dataclass(frozen=True)
class Refusal:
    """End the call with this status; with a reason, a rich one."""

    code: grpc.StatusCode
    message: str = "refused"
    details: ErrorDetails | None = None

    @classmethod
    def of(cls, reason: Reason, message: str = "refused", **details: Any) -> Refusal:
        codes = {code.value[0]: code for code in grpc.StatusCode}
        return cls(codes[STATUS_CODES[reason]], message, ErrorDetails(reason.value, **details))


Answer = Message | bytes | Refusal | float | threading.Event
"""A reply, its bytes, a status to end with, or seconds or an event to stall for. A stream takes
several; on StreamGradients they answer one request, in the order of the requests. A call that has
stalled is answered with no bytes."""


@dataclass(frozen=True)
class Call:
    """One attempt as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    moment: float
    seconds_left: float | None


@dataclass
class ScriptedServer:
    """Context manager; answers are asked of ``answer(method, request)`` on the server's thread."""

    answer: Callable[[str, Any], Answer | Sequence[Answer]]
    max_message_bytes: int = 4 * 1024 * 1024
    calls: list[Call] = field(default_factory=list[Call])
    address: str = ""
    streams: int = 0
    """StreamGradients that were opened."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set once a client has left a stream."""

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=self._main, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def count(self, method: str) -> int:
        return sum(call.method == method for call in self.calls)

    def _main(self, started: threading.Event) -> None:
        self._loop = asyncio.new_event_loop()
        # A second gRPC event loop in the process: its pollers race (see carv_client._sync).
        self._loop.set_exception_handler(lambda loop, context: None)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        options = [("grpc.max_receive_message_length", self.max_message_bytes)]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_Handler(self),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        started.set()
        await self._stop.wait()
        await server.stop(0)

    def handler(self, method: str) -> Callable[[bytes, Any], Awaitable[bytes | None]]:
        async def handle(data: bytes, context: Any) -> bytes | None:
            request = REQUESTS[method].FromString(data)
            metadata = dict(context.invocation_metadata())
            left = context.time_remaining()
            self.calls.append(Call(method, request, metadata, time.monotonic(), left))
            answers = self.answer(method, request)
            if isinstance(answers, Answer | int):
                answers = [answers]
            if method not in STREAMS:
                return await self._say(answers[0], context)
            try:
                for answer in answers:
                    piece = await self._say(answer, context)
                    if not isinstance(answer, float | threading.Event):
                        await context.write(piece)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return None

        return handle

    def exchange(self, method: str) -> Callable[[Any, Any], Awaitable[None]]:
        async def handle(requests: Any, context: Any) -> None:
            self.streams += 1
            try:
                async for data in requests:
                    request = REQUESTS[method].FromString(data)
                    metadata = dict(context.invocation_metadata())
                    self.calls.append(Call(method, request, metadata, time.monotonic(), None))
                    answers = self.answer(method, request)
                    if isinstance(answers, Answer | int):
                        answers = [answers]
                    for answer in answers:
                        piece = await self._say(answer, context)
                        if not isinstance(answer, float | threading.Event):
                            await context.write(piece)
            finally:  # a client that leaves looks like one that half-closes to who reads
                self.cancelled.set()

        return handle

    async def _say(self, answer: Answer, context: Any) -> bytes:
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return b""
        if isinstance(answer, threading.Event):
            while not answer.is_set():  # noqa: ASYNC110 (another thread sets it)
                await asyncio.sleep(0.002)
            return b""
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, Refusal):
            trailing: tuple[Any, ...] = ()
            if answer.details is not None:
                code = answer.code.value[0]
                status = encode_status(code, answer.message, answer.details)
                trailing = ((STATUS_METADATA_KEY, status),)
            await context.abort(answer.code, answer.message, trailing)
        assert isinstance(answer, Message), "abort raises"
        return answer.SerializeToString()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        if method not in REQUESTS:
            return None
        if method == "StreamGradients":
            return grpc.stream_stream_rpc_method_handler(self._server.exchange(method))
        kind = (
            grpc.unary_stream_rpc_method_handler
            if method in STREAMS
            else grpc.unary_unary_rpc_method_handler
        )
        return kind(self._server.handler(method))


def fails_first(times: int, refusal: Refusal) -> Callable[[str, Any], Answer]:
    """Refuse so many times, then answer with an empty reply."""
    left = [times]

    def answer(method: str, request: Any) -> Answer:
        left[0] -= 1
        return refusal if left[0] >= 0 else b""

    return answer
