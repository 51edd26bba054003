"""One StreamGradients call: requests in, answers out as they are ready.

Every request is answered once. Its id is free, and its place in flight, as soon as its answer is
ready, since the client may use both the moment that it has read it; answers that wait to be
written are bounded by not reading on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from carv.errors import Reason
from carv.v1 import teacher_service_pb2 as pb
from carv_server.admission import Admission
from carv_server.errors import RequestError
from carv_server.messages import MessageParser
from carv_server.observability.call import ObservedCall
from carv_server.observability.observability import Observability
from carv_server.service import Call
from carv_server.statuses import as_request_error, status_of
from carv_server.tenants.access import current_access
from carv_server.validation.stream import check_stream_request

__all__ = ["GradientStream"]

_log = logging.getLogger(__name__)

Estimate = Callable[[pb.EstimateGradientRequest, Call], Awaitable[pb.EstimateGradientResponse]]


class GradientStream:
    """The requests of one stream.

    Args:
        write: sends one message; one at a time.
        estimate: the handler of a unary EstimateGradient.
        clock: the scheduler's clock, which deadlines are on.
        deadline: of the stream; None where the client set none.
        caller: who holds the stream, as ``Call.caller``.
        most: requests in flight.
        observed: the stream's call.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        estimate: Estimate,
        admission: Admission,
        parser: MessageParser,
        clock: Callable[[], float],
        deadline: float | None,
        caller: str,
        most: int,
        observed: ObservedCall,
    ) -> None:
        self._send = write
        self._estimate = estimate
        self._admission = admission
        self._parser = parser
        self._clock = clock
        self._deadline = deadline
        self._caller = caller
        self._most = most
        self._observed = observed
        self._writing = asyncio.Lock()
        self._in_flight: dict[int, asyncio.Task[None]] = {}
        # Those in flight and those whose answers wait to be written.
        self._unfinished: set[asyncio.Task[None]] = set()

    async def run(self, requests: AsyncIterator[bytes]) -> None:
        """Until the client has half-closed and all is answered. Cancellation cancels all
        requests.

        Raises:
            RequestError: MALFORMED_MESSAGE; DRAINING, once nothing is in flight.
        """
        reading = asyncio.create_task(self._read(requests))
        drained = asyncio.create_task(self._drained())
        try:
            await asyncio.wait({reading, drained}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._admission.check_draining()
            reading.result()
            while self._unfinished:
                await asyncio.wait(self._unfinished)
        finally:
            tasks = [reading, drained, *self._unfinished]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drained(self) -> None:
        """Until the server drains and nothing is in flight here; till then requests that come
        are refused one by one."""
        await self._admission.draining.wait()
        while self._unfinished:
            await asyncio.wait(self._unfinished)

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            started = time.perf_counter()
            message = await self._parser.parse(data, pb.StreamGradientsRequest)
            if message.HasField("cancel"):
                await self._cancel(message.id)
                continue
            observed = Observability.begin_on_stream(self._observed, message.id)
            try:
                call = self._admit(message, len(data), started, observed)
            except RequestError as error:
                observed.failed(error)
                await self._write(pb.StreamGradientsResponse(id=message.id, error=status_of(error)))
                continue
            task = asyncio.create_task(self._answer(message, call, observed))
            self._in_flight[message.id] = task
            self._unfinished.add(task)
            task.add_done_callback(partial(self._finished, observed))
            while len(self._unfinished) >= 2 * self._most:  # the client reads no answers
                await asyncio.wait(self._unfinished, return_when=asyncio.FIRST_COMPLETED)

    def _admit(
        self,
        message: pb.StreamGradientsRequest,
        size: int,
        started: float,
        observed: ObservedCall,
    ) -> Call:
        timeout = check_stream_request(message, message.id in self._in_flight)
        self._admission.check_in_flight(len(self._in_flight), self._most)
        deadline = self._deadline
        if timeout is not None:
            own = self._clock() + timeout
            deadline = own if deadline is None else min(own, deadline)
        access = current_access()
        return Call(started, deadline, self._caller, access.tenant, size, access, observed)

    async def _answer(
        self, message: pb.StreamGradientsRequest, call: Call, observed: ObservedCall
    ) -> None:
        observed.enter()
        answer: dict[str, Any]
        with self._admission.counted(call.size):
            try:
                self._admission.check(call.size)
                answer = {"estimate": await self._in_time(message.estimate, call)}
                observed.succeeded()
            except Exception as error:  # noqa: BLE001 - to the log, and INTERNAL to the client
                failure = as_request_error(error, "StreamGradients")
                observed.failed(failure)
                answer = {"error": status_of(failure)}
            del self._in_flight[message.id]
            await self._write(pb.StreamGradientsResponse(id=message.id, **answer))

    async def _in_time(
        self, request: pb.EstimateGradientRequest, call: Call
    ) -> pb.EstimateGradientResponse:
        """The scheduler drops expired rows when it comes to them, and gRPC ends a unary call at
        its deadline; here it is for us to do."""
        if call.deadline is None:
            return await self._estimate(request, call)
        try:
            async with asyncio.timeout(call.deadline - self._clock()):
                return await self._estimate(request, call)
        except TimeoutError:
            raise RequestError(
                Reason.DEADLINE_EXPIRED,
                f"the deadline passed {time.perf_counter() - call.started:.3f} s after arrival; "
                "what was left was not computed",
            ) from None

    async def _cancel(self, request_id: int) -> None:
        task = self._in_flight.pop(request_id, None)
        if task is None:
            return  # answered already
        task.cancel()
        error = RequestError(Reason.CANCELLED, "cancelled by the client")
        await self._write(pb.StreamGradientsResponse(id=request_id, error=status_of(error)))

    def _finished(self, observed: ObservedCall, task: asyncio.Task[None]) -> None:
        self._unfinished.discard(task)
        observed.cancelled()  # if it had not ended before
        if not task.cancelled() and (error := task.exception()) is not None:
            # The client has left, or gRPC would not take the answer; then it ends the call too.
            _log.debug("an answer was not written", exc_info=error)

    async def _write(self, response: pb.StreamGradientsResponse) -> None:
        async with self._writing:  # gRPC takes one at a time
            await self._send(response.SerializeToString())
