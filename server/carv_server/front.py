"""The gRPC front: raw bytes in and out, for every method of the service.

Handlers take bytes, because a message that does not parse would otherwise end in UNKNOWN, and
because large parses belong off the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import TracebackType
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from carv.v1 import teacher_service_pb2 as pb
from carv_server.admission import Admission
from carv_server.gradient_stream import GradientStream
from carv_server.messages import MessageParser
from carv_server.observability.call import ObservedCall
from carv_server.observability.observability import Observability
from carv_server.service import Call, TeacherService
from carv_server.statuses import Context, abort, as_request_error, released
from carv_server.tenants.access import current_access, current_credential

__all__ = ["Front"]

_DEADLINE_SLACK_SECONDS = 0.02
_DEADLINE_ROUNDING = 0.01


class Front:
    """Counts in-flight requests, refuses new ones while draining, and turns errors to statuses.

    Args:
        clock: the scheduler's clock, on which deadlines are passed on.
        max_stream_requests: in flight on one StreamGradients.
        observability: told of every call; None: nobody is.
    """

    def __init__(
        self,
        service: TeacherService,
        max_message_bytes: int,
        workers: ThreadPoolExecutor,
        clock: Callable[[], float],
        max_stream_requests: int,
        observability: Observability | None = None,
    ) -> None:
        self._service = service
        self._parser = MessageParser(workers)
        self._clock = clock
        self._max_stream_requests = max_stream_requests
        self._admission = Admission(max_message_bytes)
        self._observability = observability or Observability()

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
        method = message.DESCRIPTOR.name.removesuffix("Request")

        async def call(data: bytes, context: Context) -> bytes:
            async with self._observed(method, context) as observed:
                with self._admission.counted(len(data)):
                    request, known = await self._admit(data, message, context, observed)
                    return (await handle(request, known)).SerializeToString()
            raise AssertionError("abort returned")

        return grpc.unary_unary_rpc_method_handler(released(call))  # pyright: ignore[reportArgumentType]

    def _stream(
        self, message: type[Message], handle: Callable[[Any, Call], AsyncGenerator[Message]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = message.DESCRIPTOR.name.removesuffix("Request")

        # A coroutine that writes, and no generator: where the client leaves, gRPC cancels a
        # coroutine wherever it waits, and what it holds is let go of at once.
        async def call(data: bytes, context: Context) -> None:
            async with self._observed(method, context) as observed:
                with self._admission.counted(len(data)):
                    request, known = await self._admit(data, message, context, observed)
                    async with aclosing(handle(request, known)) as replies:
                        async for reply in replies:
                            if context.cancelled():
                                raise asyncio.CancelledError
                            await context.write(reply.SerializeToString())
                            observed.sent()

        return grpc.unary_stream_rpc_method_handler(released(call))  # pyright: ignore[reportArgumentType]

    def _gradient_stream(self) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def call(requests: AsyncIterator[bytes], context: Context) -> None:
            async with self._observed("StreamGradients", context) as call_observed:
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
                        call_observed,
                    ).run(requests)

        return grpc.stream_stream_rpc_method_handler(released(call))  # pyright: ignore[reportArgumentType]

    async def _admit(
        self, data: bytes, message: type[Message], context: Context, observed: ObservedCall
    ) -> tuple[Message, Call]:
        """The parsed request, unless the server is draining or busy or it is too large."""
        started = time.perf_counter()
        self._admission.check(len(data))
        deadline = self._deadline(context)
        access = current_access()
        call = Call(started, deadline, context.peer(), access.tenant, len(data), access, observed)
        return await self._parser.parse(data, message), call

    def _deadline(self, context: Context) -> float | None:
        # None where the client set no deadline, whatever the stubs say.
        remaining: float | None = cast("float | None", context.time_remaining())
        return None if remaining is None else self._clock() + remaining

    def _observed(self, method: str, context: Context) -> _Observing:
        credential = current_credential.get()
        access = None if credential is None else credential.access
        tenant = "" if access is None else access.tenant
        observed = self._observability.begin(method, tenant, context.invocation_metadata)
        return _Observing(observed, method, context)


class _Observing:
    """Around a call: ends it with the status of what it raises, and tells who watches."""

    __slots__ = ("_context", "_method", "_observed")

    def __init__(self, observed: ObservedCall, method: str, context: Context) -> None:
        self._observed = observed
        self._method = method
        self._context = context

    async def __aenter__(self) -> ObservedCall:
        return self._observed

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        observed = self._observed
        if error is None:
            observed.succeeded()
        elif isinstance(error, asyncio.CancelledError):
            observed.cancelled(late=_past_deadline(self._context, observed.seconds))
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            # To the log in full, to the client as INTERNAL, where it is a defect.
            failure = as_request_error(error, self._method)
            observed.failed(failure)
            await abort(self._context, failure)


def _past_deadline(context: Context, seconds: float) -> bool:
    """Whether a call that was cancelled after so many seconds has run out of time, on the clock of
    its client: that one started earlier, and gRPC rounds what is left up on its way."""
    remaining: float | None = cast("float | None", context.time_remaining())
    if remaining is None:
        return False
    return remaining < _DEADLINE_SLACK_SECONDS + _DEADLINE_ROUNDING * (seconds + remaining)
