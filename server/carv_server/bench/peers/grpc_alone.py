"""The peers' work behind Python's gRPC and next to nothing else: what a front built on it could
reach with the simulated device.

It knows its callers, who come back when they are answered, and holds for a batch of them all; it
checks, accounts and shares nothing. /carv.peers.Denoiser/Predict, and PredictMany on a call that
stays open.

    python -m carv_server.bench.peers.grpc_alone
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from carv_server.bench.peers.scripts.work import Work, load_work, predict_bytes, served_port
from carv_server.host import event_loop_factory, keep_freed_memory, settle_heap

__all__ = ["Front"]

_log = logging.getLogger(__name__)

# One that was answered so long ago and has not come back is not waited for.
_GONE_SECONDS = 0.2
_IN_FLIGHT = 2
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True)
class _Row:
    caller: str
    request: bytes
    answer: asyncio.Future[bytes]


class Front:
    """Batches for one device, on the running event loop."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._device = ThreadPoolExecutor(1)
        self._waiting: list[_Row] = []
        self._answered: dict[str, float] = {}
        self._in_flight = 0
        self._alarm: asyncio.TimerHandle | None = None

    async def predict(
        self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        return await self.answer(context.peer(), request)

    async def predict_many(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        caller = context.peer()
        async for request in requests:
            yield await self.answer(caller, request)

    def answer(self, caller: str, request: bytes) -> asyncio.Future[bytes]:
        """To come; fails with what the work raises."""
        row = _Row(caller, request, self._loop.create_future())
        self._waiting.append(row)
        self._answered.pop(caller, None)
        self._advance()
        return row.answer

    def _advance(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        most = self._work.max_batch
        while self._in_flight < _IN_FLIGHT:
            if len(self._waiting) < most:
                if self._in_flight or not self._waiting:
                    return
                past = self._loop.time() - _GONE_SECONDS
                self._answered = {c: at for c, at in self._answered.items() if at > past}
                if self._answered:  # they may come back
                    first = min(self._answered.values())
                    self._alarm = self._loop.call_at(first + _GONE_SECONDS, self._advance)
                    return
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            self._in_flight += 1
            self._device.submit(self._run, batch)

    def _run(self, batch: Sequence[_Row]) -> None:
        """On the device's thread."""
        try:
            answers = predict_bytes(self._work, [row.request for row in batch])
        except Exception as error:  # noqa: BLE001 - its callers are told
            self._loop.call_soon_threadsafe(self._fail, batch, error)
        else:
            self._loop.call_soon_threadsafe(self._deliver, batch, answers)

    def _deliver(self, batch: Sequence[_Row], answers: Sequence[bytes]) -> None:
        self._end(batch)
        for row, answer in zip(batch, answers, strict=True):
            if not row.answer.done():  # else its caller has left
                row.answer.set_result(answer)

    def _fail(self, batch: Sequence[_Row], error: Exception) -> None:
        _log.error("a forward failed", exc_info=error)
        self._end(batch)
        for row in batch:
            if not row.answer.done():
                row.answer.set_exception(error)

    def _end(self, batch: Sequence[_Row]) -> None:
        """The device comes first: what waits is handed over before answers are sent."""
        now = self._loop.time()
        self._answered |= {row.caller: now for row in batch}
        self._in_flight -= 1
        self._advance()


async def _serve() -> None:
    front = Front(load_work())
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Predict": grpc.unary_unary_rpc_method_handler(front.predict),  # pyright: ignore[reportArgumentType]
        "PredictMany": grpc.stream_stream_rpc_method_handler(front.predict_many),  # pyright: ignore[reportArgumentType]
    }
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("carv.peers.Denoiser", methods),)
    )
    server.add_insecure_port(f"127.0.0.1:{served_port()}")
    await server.start()
    keep_freed_memory()
    settle_heap()
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(_serve())
