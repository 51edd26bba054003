"""The gRPC front: raw bytes in and out, for every method of the service.

Handlers take bytes, because a message that does not parse would otherwise end in UNKNOWN, and
because large parses belong off the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from carv.v1 import teacher_service_pb2 as pb
from carv_server.admission import Admission
from carv_server.gradient_stream import GradientStream
from carv_server.messages import MessageParser
from carv_server.service import Call, TeacherService
from carv_server.statuses import Context, abort, as_request_error, released

__all__ = ["Front"]


class Front:
    """Counts in-flight requests, refuses new ones while draining, and turns errors to statuses.

    Args:
        clock: the scheduler's clock, on which deadlines are passed on.
        max_stream_requests: in flight on one StreamGradients.
    """

    def __init__(
        self,
        service: TeacherService,
        max_message_bytes: int,
        workers: ThreadPoolExecutor,
        clock: Callable[[], float],
        max_stream_requests: int,
    ) -> None:
        self._service = service
        self._parser = MessageParser(workers)
        self._clock = clock
        self._max_stream_requests = max_stream_requests
        self._admission = Admission(max_message_bytes)

    @property
    def service_name(self) -> str:
        return pb.DESCRIPTOR.services_by_name["TeacherService"].full_name

    def handlers(self) -> grpc.GenericRpcHandler:
        """One raw handler for every method of the service descriptor."""
        unary: dict[str, Callable[[Any, Call], Awaitable[Message]]] = {
            "ListTeachers": self._service.list_teachers,
            "GetTeacher": self._service.get_teacher,
            "CreateConditioning": self._service.create_conditioning,
            "CreateLatents": self._service.create_latents,
            "EstimateGradient": self._service.estimate_gradient,
            "PredictNoise": self._service.predict_noise,
        }
        streams: dict[str, Callable[[Any, Call], AsyncGenerator[Message]]] = {
            "ProfileTeacher": self._service.profile_teacher,
            "RefineGradient": self._service.refine_gradient,
        }
        methods = pb.DESCRIPTOR.services_by_name["TeacherService"].methods_by_name
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for name, method in methods.items():
            message = getattr(pb, method.input_type.name)
            if method.client_streaming:
                handlers[name] = self._gradient_stream()
            elif method.server_streaming:
                handlers[name] = self._stream(message, streams[name])
            else:
                handlers[name] = self._unary(message, unary[name])
        return grpc.method_handlers_generic_handler(self.service_name, handlers)

    def drain(self) -> None:
        """Refuse new requests with UNAVAILABLE."""
        self._admission.draining.set()

    async def wait_idle(self) -> None:
        """Until no request is in flight."""
        await self._admission.wait_idle()

    def _unary(
        self, message: type[Message], handle: Callable[[Any, Call], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def call(data: bytes, context: Context) -> bytes:
            async with _ended_by_status(context, message.DESCRIPTOR.name):
                with self._admission.counted(len(data)):
                    request, known = await self._admit(data, message, context)
                    return (await handle(request, known)).SerializeToString()
            raise AssertionError("abort returned")

        return grpc.unary_unary_rpc_method_handler(released(call))  # pyright: ignore[reportArgumentType]

    def _stream(
        self, message: type[Message], handle: Callable[[Any, Call], AsyncGenerator[Message]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        # A coroutine that writes, and no generator: where the client leaves, gRPC cancels a
        # coroutine wherever it waits, and what it holds is let go of at once.
        async def call(data: bytes, context: Context) -> None:
            async with _ended_by_status(context, message.DESCRIPTOR.name):
                with self._admission.counted(len(data)):
                    request, known = await self._admit(data, message, context)
                    async with aclosing(handle(request, known)) as replies:
                        async for reply in replies:
                            if context.cancelled():
                                raise asyncio.CancelledError
                            await context.write(reply.SerializeToString())

        return grpc.unary_stream_rpc_method_handler(released(call))  # pyright: ignore[reportArgumentType]

    def _gradient_stream(self) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def call(requests: AsyncIterator[bytes], context: Context) -> None:
            async with _ended_by_status(context, "StreamGradients"):
                with self._admission.open_stream():
                    await GradientStream(
                        context.write,
                        self._service.estimate_gradient,
                        self._admission,
                        self._parser,
                        self._clock,
                        self._deadline(context),
                        context.peer(),
                        self._max_stream_requests,
                    ).run(requests)

        return grpc.stream_stream_rpc_method_handler(released(call))  # pyright: ignore[reportArgumentType]

    async def _admit(
        self, data: bytes, message: type[Message], context: Context
    ) -> tuple[Message, Call]:
        """The parsed request, unless the server is draining or busy or it is too large."""
        started = time.perf_counter()
        self._admission.check(len(data))
        deadline = self._deadline(context)
        call = Call(started, deadline, context.peer(), size=len(data))
        return await self._parser.parse(data, message), call

    def _deadline(self, context: Context) -> float | None:
        # None where the client set no deadline, whatever the stubs say.
        remaining: float | None = cast("float | None", context.time_remaining())
        return None if remaining is None else self._clock() + remaining


@asynccontextmanager
async def _ended_by_status(context: Context, what: str) -> AsyncIterator[None]:
    """End a call with the status of what it raises."""
    try:
        yield
        return
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as error:  # noqa: BLE001 - to the log in full, to the client as INTERNAL
        failure = as_request_error(error, what)
    await abort(context, failure)
