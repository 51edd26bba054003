"""The gRPC front: raw bytes in and out, statuses, admission while draining.

Handlers take bytes, because a message that does not parse would otherwise end in UNKNOWN, and
because large parses belong off the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from carv.errors import (
    STATUS_CODES,
    STATUS_METADATA_KEY,
    ErrorDetails,
    FieldViolation,
    Reason,
    encode_status,
)
from carv.v1 import teacher_service_pb2 as pb
from carv_server.errors import RequestError
from carv_server.service import Call, TeacherService

__all__ = ["Front"]

_log = logging.getLogger(__name__)

_STATUS_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_PARSE_ASIDE_BYTES = 64 * 1024
# Bounds on what waits to be parsed, checked and computed, beside the scheduler's own.
_MAX_CALLS = 2048
_MAX_BYTES = 1 << 30
_BUSY_RETRY_SECONDS = 0.25
# Long enough for a client to have found another server, or this one's successor.
_DRAINING_RETRY_SECONDS = 1.0
# A client by default refuses trailing metadata above 8 KiB; the details are sent as base64.
_MAX_STATUS_MESSAGE_BYTES = 1024
_MAX_STATUS_VIOLATION_BYTES = 3072

Context = grpc.aio.ServicerContext[bytes, bytes]


class Front:
    """Counts in-flight calls, refuses new ones while draining, and turns errors to statuses.

    Args:
        clock: the scheduler's clock, on which deadlines are passed on.
    """

    def __init__(
        self,
        service: TeacherService,
        max_message_bytes: int,
        workers: ThreadPoolExecutor,
        clock: Callable[[], float],
    ) -> None:
        self._service = service
        self._max_message_bytes = max_message_bytes
        self._workers = workers
        self._clock = clock
        self._draining = False
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def service_name(self) -> str:
        return pb.DESCRIPTOR.services_by_name["TeacherService"].full_name

    def handlers(self) -> grpc.GenericRpcHandler:
        """One raw handler for every method of the service descriptor."""
        unary: dict[str, Callable[[Any, Call], Awaitable[Message]]] = {
            "ListTeachers": self._service.list_teachers,
            "GetTeacher": self._service.get_teacher,
            "CreateConditioning": self._service.create_conditioning,
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
            if method.server_streaming:
                handlers[name] = self._stream(message, streams[name])
            else:
                handlers[name] = self._unary(message, unary[name])
        return grpc.method_handlers_generic_handler(self.service_name, handlers)

    def drain(self) -> None:
        """Refuse new calls with UNAVAILABLE."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Until no call is in flight."""
        await self._idle.wait()

    def _unary(
        self, message: type[Message], handle: Callable[[Any, Call], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def call(data: bytes, context: Context) -> bytes:
            async with self._counted(data, message, context):
                request, known = await self._admit(data, message, context)
                return (await handle(request, known)).SerializeToString()
            raise AssertionError("abort returned")

        return grpc.unary_unary_rpc_method_handler(call)  # pyright: ignore[reportArgumentType]

    def _stream(
        self, message: type[Message], handle: Callable[[Any, Call], AsyncGenerator[Message]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        # A coroutine that writes, and no generator: where the client leaves, gRPC cancels a
        # coroutine wherever it waits, and what it holds is let go of at once.
        async def call(data: bytes, context: Context) -> None:
            async with self._counted(data, message, context):
                request, known = await self._admit(data, message, context)
                async with aclosing(handle(request, known)) as replies:
                    async for reply in replies:
                        if context.cancelled():
                            raise asyncio.CancelledError
                        await context.write(reply.SerializeToString())

        return grpc.unary_stream_rpc_method_handler(call)  # pyright: ignore[reportArgumentType]

    @asynccontextmanager
    async def _counted(
        self, data: bytes, message: type[Message], context: Context
    ) -> AsyncIterator[None]:
        """Count a call while it is in flight; end it with the status of what it raises."""
        self._in_flight += 1
        self._bytes_in_flight += len(data)
        self._idle.clear()
        try:
            yield
            return
        except RequestError as error:
            failure = error
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:  # noqa: BLE001 - to the log in full, to the client as INTERNAL
            _log.exception("%s failed", message.DESCRIPTOR.name)
            failure = RequestError(Reason.INTERNAL, "a defect of the server; its log has the trace")
        finally:
            self._in_flight -= 1
            self._bytes_in_flight -= len(data)
            if self._in_flight == 0:
                self._idle.set()
        await _abort(context, failure)

    async def _admit(
        self, data: bytes, message: type[Message], context: Context
    ) -> tuple[Message, Call]:
        """The parsed request, unless the server is draining or busy or it is too large."""
        started = time.perf_counter()
        if self._draining:
            raise RequestError(
                Reason.DRAINING,
                "the server is shutting down; send it elsewhere or later",
                retry_delay_seconds=_DRAINING_RETRY_SECONDS,
            )
        if len(data) > self._max_message_bytes:
            raise RequestError(
                Reason.MESSAGE_TOO_LARGE,
                f"the request holds {len(data)} bytes; the limit is {self._max_message_bytes}: "
                "send fewer renders at once",
                violations=[
                    FieldViolation(
                        "request", f"{len(data)} bytes; the limit is {self._max_message_bytes}"
                    )
                ],
            )
        if self._in_flight > _MAX_CALLS or self._bytes_in_flight > _MAX_BYTES:
            raise RequestError(
                Reason.QUEUE_FULL,
                f"{self._in_flight} calls of {self._bytes_in_flight} bytes are in flight; the "
                f"limits are {_MAX_CALLS} and {_MAX_BYTES}",
                retry_delay_seconds=_BUSY_RETRY_SECONDS,
            )
        # None where the client set no deadline, whatever the stubs say.
        remaining: float | None = cast("float | None", context.time_remaining())
        deadline = None if remaining is None else self._clock() + remaining
        return await self._parse(data, message), Call(started, deadline, context.peer())

    async def _parse(self, data: bytes, message: type[Message]) -> Message:
        try:
            if len(data) < _PARSE_ASIDE_BYTES:
                return message.FromString(data)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._workers, message.FromString, data)
        except DecodeError:
            raise RequestError(
                Reason.MALFORMED_MESSAGE,
                f"the bytes are not a {message.DESCRIPTOR.full_name}",
            ) from None


async def _abort(context: Context, error: RequestError) -> None:
    code = STATUS_CODES[error.reason]
    message = _shortened(error.message)
    details = ErrorDetails(
        error.reason.value, error.metadata, _first(error.violations), error.retry_delay_seconds
    )
    await context.abort(
        _STATUS_BY_NUMBER[code],
        message,
        trailing_metadata=((STATUS_METADATA_KEY, encode_status(code, message, details)),),
    )


def _shortened(message: str) -> str:
    """At most so many bytes once gRPC has percent-encoded it."""
    used = 0
    for i, character in enumerate(message):
        used += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if used > _MAX_STATUS_MESSAGE_BYTES:
            return f"{message[:i]} ..."
    return message


def _first(violations: Sequence[FieldViolation]) -> Sequence[FieldViolation]:
    """As many violations as fit; the last one says how many do not."""
    kept: list[FieldViolation] = []
    used = 0
    for i, violation in enumerate(violations):
        description = _shortened(violation.description)
        used += len(violation.field.encode()) + len(description.encode())
        if used > _MAX_STATUS_VIOLATION_BYTES:
            left = len(violations) - i
            kept.append(FieldViolation(violation.field, f"this and more: {left} are not listed"))
            break
        kept.append(FieldViolation(violation.field, description))
    return kept
