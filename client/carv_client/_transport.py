"""The one choke point: every RPC goes through ``Transport``.

Deadlines, retries, message limits and error mapping live here and nowhere else. gRPC's own
retries are off, so that there is one policy: UNAVAILABLE is always retried,
RESOURCE_EXHAUSTED only where the server sent RetryInfo, nothing else ever, and never past the
deadline. Every RPC of the contract is idempotent, so a retry is always safe; a stream is sent
again only while nothing of it has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from carv.errors import FieldViolation, Reason
from carv.v1 import tensor_pb2
from carv_client._channel import open_channel
from carv_client._config import ClientConfig
from carv_client._errors import (
    CarvError,
    ClientClosedError,
    DeadlineExceededError,
    InternalError,
    MessageTooLargeError,
    ResourceExhaustedError,
    UnavailableError,
    from_rpc_error,
)
from carv_client._rpcs import Rpc
from carv_client._trace_context import with_trace_context

__all__ = [
    "Deadline",
    "Transport",
    "closed",
    "retry_wait",
]

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True)
class Deadline:
    """A moment on the event loop's clock by which a call must be done; None is never."""

    moment: float | None
    seconds: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now."""
        if seconds is None:
            return cls(None, None)
        return cls(asyncio.get_running_loop().time() + seconds, seconds)

    def remaining(self) -> float | None:
        """Seconds left, possibly below zero."""
        if self.moment is None:
            return None
        return self.moment - asyncio.get_running_loop().time()

    def left_for(self, rpc: Rpc[Any, Any]) -> float | None:
        """Seconds left to a call; raises DeadlineExceededError where there are none."""
        left = self.remaining()
        if left is not None and left <= 0:
            raise self.passed(rpc)
        return left

    def passed(self, rpc: Rpc[Any, Any]) -> DeadlineExceededError:
        """The error of a call that was not answered in time."""
        return DeadlineExceededError(
            f"no reply to {rpc.name} within {self.seconds} s", grpc.StatusCode.DEADLINE_EXCEEDED
        )


_NEVER = Deadline(None, None)


def retry_wait(
    error: CarvError, attempt: int, config: ClientConfig, jitter: Callable[[], float]
) -> float | None:
    """Seconds to wait before sending again, or None where the error is final.

    Args:
        error: why the attempt failed.
        attempt: which attempt that was, from 1.
        config: the policy.
        jitter: uniform on [0, 1); spreads the wait over [half, whole] of the backoff.
    """
    told = error.retry_delay
    retryable = isinstance(error, UnavailableError) or (
        isinstance(error, ResourceExhaustedError) and told is not None
    )
    if not retryable or attempt >= config.retry_attempts:
        return None
    backoff = min(config.retry_max_seconds, config.retry_initial_seconds * 2.0 ** (attempt - 1))
    wait = backoff * (0.5 + 0.5 * jitter())
    # Never before the server's own delay, and spread, so that a crowd does not return at once.
    return wait if told is None else max(wait, told * (1.0 + 0.1 * jitter()))


class Transport:
    """A gRPC channel with one policy. Belongs to the event loop that first calls it."""

    def __init__(self, config: ClientConfig, jitter: Callable[[], float]) -> None:
        self._config = config
        self._jitter = jitter
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._metadata = [(key, value) for key, value in config.metadata.items()]
        if config.token is not None:
            self._metadata.append(("authorization", f"Bearer {config.token}"))

    async def call(self, rpc: Rpc[Request, Reply], request: Request, deadline: Deadline) -> Reply:
        """Send a request, again where that helps, and return the reply.

        Raises:
            CarvError: as drawn in ``carv_client._errors``.
        """
        data = self.serialize(request)  # once, however often it is sent
        return await self.retried(lambda: self._send(rpc, data, deadline), deadline)

    async def call_once(
        self, rpc: Rpc[Request, Reply], request: Request, deadline: Deadline
    ) -> Reply:
        """As ``call``, for a caller that retries by itself."""
        return await self._send(rpc, self.serialize(request), deadline)

    async def retried(self, attempt: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """Attempt something, again where that helps.

        Raises:
            CarvError: of the last attempt.
        """
        attempts = 0
        while True:
            attempts += 1
            try:
                return await attempt()
            except CarvError as error:
                wait = self._wait(error, attempts, deadline)
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def stream(
        self, rpc: Rpc[Request, Reply], request: Request, deadline: Deadline
    ) -> AsyncGenerator[Reply]:
        """Send a request and yield the replies to it. Closing the generator cancels the call.

        Raises:
            CarvError: as ``call``, also after some replies.
        """
        data = self.serialize(request)
        attempt = 0
        while True:
            attempt += 1
            received = False
            try:
                async with aclosing(self._receive(rpc, data, deadline)) as pieces:
                    async for piece in pieces:
                        received = True
                        yield _parse(rpc, piece)
                return
            except CarvError as error:
                wait = None if received else self._wait(error, attempt, deadline)
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def exchange(
        self, rpc: Rpc[Request, Reply], requests: AsyncIterator[bytes]
    ) -> AsyncGenerator[Reply]:
        """One stream both ways, without deadline or retries: sends what ``requests`` yields, and
        yields what comes. Closing the generator cancels the call.

        Raises:
            CarvError: as the stream ends.
        """
        with self._mapped(rpc, _NEVER):
            channel = cast(Any, self._open())
            # No trace context: a stream outlives the step that happens to open it.
            call = channel.stream_stream(rpc.path)(requests, metadata=self._metadata)
            try:
                async for piece in cast("AsyncIterator[bytes]", call):
                    yield _parse(rpc, piece)
            finally:
                call.cancel()  # does nothing to a call that is over

    async def close(self) -> None:
        """Close the channel; calls in flight end with ClientClosedError. May be repeated."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def serialize(self, request: Message) -> bytes:
        """The bytes to send.

        Raises:
            MessageTooLargeError: above ``ClientConfig.max_message_bytes``.
        """
        size, limit = request.ByteSize(), self._config.max_message_bytes
        if size > limit:
            field = _largest_field(request)
            raise MessageTooLargeError(
                f"the request takes {size} bytes and the limit is {limit} "
                "(ClientConfig.max_message_bytes); send fewer renders at once, or a 16-bit dtype",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                Reason.MESSAGE_TOO_LARGE.value,
                violations=[FieldViolation(field, "the largest part of the request")],
            )
        return request.SerializeToString()

    def _wait(self, error: CarvError, attempt: int, deadline: Deadline) -> float | None:
        """As ``retry_wait``, and None where the deadline comes first."""
        wait = retry_wait(error, attempt, self._config, self._jitter)
        left = deadline.remaining()
        return None if wait is None or (left is not None and wait >= left) else wait

    async def _send(self, rpc: Rpc[Any, Reply], data: bytes, deadline: Deadline) -> Reply:
        with self._mapped(rpc, deadline) as left:
            channel = cast(Any, self._open())
            method = channel.unary_unary(rpc.path)
            metadata = with_trace_context(self._metadata)
            return _parse(rpc, await method(data, timeout=left, metadata=metadata))
        raise AssertionError("an error was swallowed")

    async def _receive(
        self, rpc: Rpc[Any, Any], data: bytes, deadline: Deadline
    ) -> AsyncGenerator[bytes]:
        with self._mapped(rpc, deadline) as left:
            channel = cast(Any, self._open())
            method = channel.unary_stream(rpc.path)
            metadata = with_trace_context(self._metadata)
            call = method(data, timeout=left, metadata=metadata)
            try:
                async for piece in cast("AsyncIterator[bytes]", call):
                    yield piece
            finally:
                call.cancel()  # does nothing to a call that is over

    @contextmanager
    def _mapped(self, rpc: Rpc[Any, Any], deadline: Deadline) -> Iterator[float | None]:
        """One attempt: the seconds it may take, and its errors as this library's."""
        left = deadline.left_for(rpc)
        try:
            yield left
        except grpc.aio.AioRpcError as error:
            if self._closed:
                raise closed() from None
            mapped = from_rpc_error(error)
            if isinstance(mapped, DeadlineExceededError) and not mapped.reason:
                raise deadline.passed(rpc) from error
            raise mapped from (None if mapped.reason else error)  # a rich status says it all
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and (task is None or not task.cancelling()):
                raise closed() from None  # closing the channel cancels its calls
            raise

    def _open(self) -> grpc.aio.Channel:
        if self._closed:
            raise closed()
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._channel, self._loop = open_channel(self._config), loop
        elif loop is not self._loop:
            raise RuntimeError("an AsyncTeacherClient belongs to the event loop that first used it")
        return self._channel


def _parse(rpc: Rpc[Any, Reply], data: bytes) -> Reply:
    try:
        return rpc.reply.FromString(data)
    except DecodeError as error:
        raise InternalError(
            f"the reply to {rpc.name} does not parse; is this a carv.v1 server?",
            grpc.StatusCode.INTERNAL,
        ) from error


def _largest_field(message: Message) -> str:
    """Path of the field that takes the most bytes, down to the tensor."""
    path: list[str] = []
    while not isinstance(message, tensor_pb2.Tensor):
        parts: list[tuple[int, str, Any]] = []
        for field, value in message.ListFields():
            size = value.ByteSize() if isinstance(value, Message) else len(str(value))
            parts.append((size, field.name, value))
        if not parts:
            break
        _, name, value = max(parts, key=lambda part: part[0])
        path.append(name)
        if not isinstance(value, Message):
            break
        message = value
    return ".".join(path)


def closed() -> ClientClosedError:
    """The error of a call that ``close`` has ended."""
    return ClientClosedError("the client is closed")
