"""One StreamGradients call: many requests in flight, answers by id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import grpc

from carv.v1 import teacher_service_pb2 as pb
from carv_client._errors import CarvError, InternalError, UnavailableError, from_status
from carv_client._rpcs import STREAM_GRADIENTS
from carv_client._transport import Transport, closed

__all__ = ["GradientStream", "StreamBrokenError"]


class StreamBrokenError(Exception):
    """The stream ended before the answer; ``error`` says how. Nothing is known of the request."""

    def __init__(self, error: CarvError) -> None:
        super().__init__(str(error))
        self.error = error


class GradientStream:
    """Opens with the first request; ends when it is retired and all is answered, when the server
    ends it, or by ``close``.

    Args:
        seconds: after which it retires by itself.
        on_end: called once it has ended.

    Attributes:
        broken: how it ended; None while it is open.
        retired: it is for no new requests; those in flight are answered.
    """

    def __init__(
        self, transport: Transport, seconds: float, on_end: Callable[[GradientStream], None]
    ) -> None:
        self._transport = transport
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[pb.EstimateGradientResponse]] = {}
        self._outbox: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._on_end = on_end
        self._half_closed = False
        self.broken: CarvError | None = None
        self.retired = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self.retire)
        self._reader = asyncio.create_task(self._read())

    async def ask(
        self, request: pb.EstimateGradientRequest, seconds: float | None
    ) -> pb.EstimateGradientResponse:
        """Send a request and wait for its answer. Cancellation cancels it on the server too.

        Args:
            seconds: within which the server must answer; the wait is bounded likewise.

        Raises:
            CarvError: this request has failed; the stream goes on.
            StreamBrokenError: the stream has.
            TimeoutError: after ``seconds``.
        """
        if self.broken is not None:
            raise StreamBrokenError(self.broken)
        self._last_id += 1
        request_id = self._last_id
        message = pb.StreamGradientsRequest(
            id=request_id, estimate=request, timeout_seconds=seconds
        )
        data = self._transport.serialize(message)
        answer: asyncio.Future[pb.EstimateGradientResponse]
        answer = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        self._outbox.put_nowait((request_id, data))
        try:
            async with asyncio.timeout(seconds):
                return await answer
        finally:
            if self._waiting.pop(request_id, None) is not None:
                self._leave(request_id)
            self._half_close_if_over()

    def retire(self) -> None:
        """Let it end in good order: with the last answer, or now if nothing is in flight."""
        self.retired = True
        self._timer.cancel()
        self._half_close_if_over()

    async def close(self) -> None:
        """End the call; whoever waits gets a StreamBrokenError."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._end(closed())

    def _leave(self, request_id: int) -> None:
        """The server need not go on with a request, if it has begun."""
        message = pb.StreamGradientsRequest(id=request_id, cancel=pb.CancelGradient())
        self._outbox.put_nowait((0, message.SerializeToString()))

    def _half_close_if_over(self) -> None:
        """No sooner: a cancellation could not be sent any more."""
        if self.retired and not self._waiting and not self._half_closed:
            self._half_closed = True
            self._outbox.put_nowait(None)

    async def _read(self) -> None:
        try:
            async for response in self._transport.exchange(STREAM_GRADIENTS, self._outgoing()):
                self._take(response)
            self._end(UnavailableError("the server ended the stream", grpc.StatusCode.UNAVAILABLE))
        except CarvError as error:
            self._end(error)
        except Exception as error:  # whoever waits must learn of it
            self._end(InternalError(f"the stream broke: {error}", grpc.StatusCode.INTERNAL))
            raise

    async def _outgoing(self) -> AsyncGenerator[bytes]:
        """Sent from gRPC's own task: the cancellation of a task that writes ends the call."""
        while (item := await self._outbox.get()) is not None:
            request_id, data = item
            if request_id == 0 or request_id in self._waiting:
                yield data

    def _take(self, response: pb.StreamGradientsResponse) -> None:
        answer = self._waiting.pop(response.id, None)
        if answer is None or answer.done():
            return  # nobody waits for it any more
        if response.HasField("error"):
            answer.set_exception(from_status(response.error))
        else:
            answer.set_result(response.estimate)

    def _end(self, error: CarvError) -> None:
        if self.broken is not None:
            return
        self.broken = error
        self._timer.cancel()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(StreamBrokenError(error))
        self._outbox.put_nowait(None)
        self._on_end(self)
