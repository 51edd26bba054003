"""The work behind Python's gRPC and next to nothing else: what a server built on it could reach.

It knows its callers, who come back when they are answered, and holds for the full batch of them;
it checks, accounts and shares nothing. Runs in the benchmark's own environment.

/carv.peers.Denoiser/Predict, and /carv.peers.Denoiser/PredictMany on a call that stays open
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
from work import Work, load_work, predict_bytes, served_port

from carv_server.host import event_loop_factory, keep_freed_memory, settle_heap

# A caller that was not heard of for so long is gone, and what waits for it is waited for no longer.
_GONE_SECONDS = 0.2
_IN_FLIGHT = 2
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Front:
    """Batches for one device, on the running event loop."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._device = ThreadPoolExecutor(1)
        self._waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []
        self._heard: dict[str, float] = {}
        self._in_flight = 0
        self._alarm: asyncio.TimerHandle | None = None

    async def predict(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return await self._answer(context.peer(), request)

    async def predict_many(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        caller = context.peer()
        async for request in requests:
            yield await self._answer(caller, request)

    def _answer(self, caller: str, request: bytes) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append((request, answer))
        self._heard[caller] = self._loop.time()
        self._advance()
        return answer

    def _advance(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._waiting and self._in_flight < _IN_FLIGHT:
            most = self._work.max_batch
            if len(self._waiting) < most:
                if self._in_flight:
                    return
                now = self._loop.time()
                self._heard = {c: t for c, t in self._heard.items() if now - t < _GONE_SECONDS}
                if len(self._waiting) < min(most, len(self._heard)):
                    self._alarm = self._loop.call_later(_GONE_SECONDS, self._advance)
                    return
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            self._in_flight += 1
            self._device.submit(self._run, batch)

    def _run(self, batch: Sequence[tuple[bytes, asyncio.Future[bytes]]]) -> None:
        answers = predict_bytes(self._work, [request for request, _ in batch])
        self._loop.call_soon_threadsafe(self._done, batch, answers)

    def _done(
        self, batch: Sequence[tuple[bytes, asyncio.Future[bytes]]], answers: Sequence[bytes]
    ) -> None:
        self._in_flight -= 1
        self._advance()
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():  # its caller has left
                future.set_result(answer)


async def serve() -> None:
    front = Front(load_work())
    methods: dict[str, Any] = {
        "Predict": grpc.unary_unary_rpc_method_handler(front.predict),
        "PredictMany": grpc.stream_stream_rpc_method_handler(front.predict_many),
    }
    server = grpc.aio.server(options=_UNLIMITED)
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
        runner.run(serve())
