"""Requests that go on while the caller renders: at most so many at a time, over one stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from carv.v1 import teacher_service_pb2 as pb
from carv_client._errors import DeadlineExceededError, UnavailableError
from carv_client._gradient_stream import GradientStream, StreamBrokenError
from carv_client._rpcs import ESTIMATE_GRADIENT
from carv_client._transport import Deadline, Transport, closed

__all__ = ["Pipeline", "Submissions"]

T = TypeVar("T")

# A stream keeps to the connection that it was opened on, and so to one server. A new one now and
# then lets go of a connection that the server has ended to new calls, well before it cuts off the
# old ones (its connection_grace_seconds), and gives other servers their turn.
_STREAM_SECONDS = 60.0


class Pipeline:
    """EstimateGradient over a stream that is opened again when it breaks, and once a minute. The
    old one then ends by itself, with its last answer.

    A broken stream says nothing of the requests on it, which are then sent again, with the same
    seed. Where no stream is to be had (an older server, a proxy), or it
    broke for a cause that may lie with one of its requests, they go as calls of their own, so
    that each gets its own verdict.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stream: GradientStream | None = None
        self._streams: set[GradientStream] = set()  # all that have not ended
        self._supported = True

    async def call(
        self, request: pb.EstimateGradientRequest, deadline: Deadline
    ) -> pb.EstimateGradientResponse:
        """As ``Transport.call``, with the same retries and errors."""
        return await self._transport.retried(lambda: self._attempt(request, deadline), deadline)

    async def close(self) -> None:
        """End the streams."""
        self._stream = None
        await asyncio.gather(*(stream.close() for stream in list(self._streams)))

    async def _attempt(
        self, request: pb.EstimateGradientRequest, deadline: Deadline
    ) -> pb.EstimateGradientResponse:
        if self._supported:
            left = deadline.left_for(ESTIMATE_GRADIENT)
            try:
                return await self._open().ask(request, left)
            except DeadlineExceededError:
                raise  # as the server tells it
            except TimeoutError:
                raise deadline.passed(ESTIMATE_GRADIENT) from None
            except StreamBrokenError as broken:
                error = broken.error
            if isinstance(error, UnavailableError):
                raise error
            self._supported = error.code is not grpc.StatusCode.UNIMPLEMENTED
        return await self._transport.call_once(ESTIMATE_GRADIENT, request, deadline)

    def _open(self) -> GradientStream:
        stream = self._stream
        if stream is None or stream.retired or stream.broken is not None:
            stream = GradientStream(self._transport, _STREAM_SECONDS, self._streams.discard)
            self._streams.add(stream)
            self._stream = stream
        return stream


class Submissions:
    """Work in the background, at most so much at a time, with a future for each piece.

    Belongs to one event loop. Keeps a piece of work only until it is done, whether or not anyone
    still holds its future.
    """

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)
        self._running: dict[asyncio.Future[Any], asyncio.Task[None]] = {}

    async def start(
        self, work: Callable[[], Awaitable[T]], deadline: Deadline
    ) -> asyncio.Future[T]:
        """Wait for a place and start. Cancelling the future cancels the work.

        Raises:
            DeadlineExceededError: there was no place in time.
        """
        try:
            async with asyncio.timeout(deadline.left_for(ESTIMATE_GRADIENT)):
                await self._places.acquire()
        except TimeoutError:
            raise deadline.passed(ESTIMATE_GRADIENT) from None
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_fill(answer, work))
        self._running[answer] = task
        task.add_done_callback(lambda _: self._over(answer))
        answer.add_done_callback(lambda _: task.cancel())  # does nothing to a task that is done
        return answer

    def close(self) -> None:
        """End all work; its futures get ClientClosedError."""
        for answer in list(self._running):
            if not answer.done():
                answer.set_exception(closed())
                answer.exception()  # seen: asyncio need not complain of one that nobody awaits

    def _over(self, answer: asyncio.Future[Any]) -> None:
        del self._running[answer]
        self._places.release()


async def _fill(answer: asyncio.Future[T], work: Callable[[], Awaitable[T]]) -> None:
    try:
        result = await work()
    except asyncio.CancelledError:
        answer.cancel()  # does nothing to an answer that is done
        raise
    except Exception as error:  # noqa: BLE001 - whoever holds the future is told
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(result)
