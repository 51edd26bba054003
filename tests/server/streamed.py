"""A StreamGradients call as a gRPC client without our library makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc.aio

from carv.errors import ErrorDetails, decode_status
from carv.v1 import teacher_service_pb2 as pb
from tests.server.wire import Failure, failure_of, path

__all__ = ["Stream", "details_of"]

_SECONDS = 20.0
_EOF: Any = cast(Any, grpc.aio).EOF


class Stream:
    """Every wait is bounded."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        method = channel.stream_stream(path("StreamGradients"))
        self.call: Any = method(timeout=timeout, metadata=metadata)

    async def ask(
        self, number: int, request: pb.EstimateGradientRequest, seconds: float | None = None
    ) -> None:
        await self.send(
            pb.StreamGradientsRequest(id=number, estimate=request, timeout_seconds=seconds)
        )

    async def cancel(self, number: int) -> None:
        await self.send(pb.StreamGradientsRequest(id=number, cancel=pb.CancelGradient()))

    async def send(self, message: pb.StreamGradientsRequest | bytes) -> None:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        await asyncio.wait_for(self.call.write(data), _SECONDS)

    async def answer(self) -> pb.StreamGradientsResponse:
        """The next one."""
        data = await asyncio.wait_for(self.call.read(), _SECONDS)
        assert data is not _EOF, "the stream ended"
        return pb.StreamGradientsResponse.FromString(data)

    async def answers(self, count: int) -> dict[int, pb.StreamGradientsResponse]:
        """The next ones by id, in order of arrival; each id once."""
        found: dict[int, pb.StreamGradientsResponse] = {}
        for _ in range(count):
            answer = await self.answer()
            assert answer.id not in found, "answered twice"
            found[answer.id] = answer
        return found

    async def half_close(self) -> None:
        await self.call.done_writing()

    async def ended(self) -> None:
        """It must end well, with no more answers."""
        assert await asyncio.wait_for(self.call.read(), _SECONDS) is _EOF

    async def failure(self, errors: int = 0) -> Failure:
        """How it ends; it must fail, with so many answers before at most, and they errors."""
        try:
            for _ in range(errors + 1):
                details_of(await self.answer())
        except grpc.aio.AioRpcError as error:
            return failure_of(error)
        raise AssertionError("it goes on")


def details_of(answer: pb.StreamGradientsResponse) -> ErrorDetails:
    """Of the error that an answer must be."""
    assert answer.WhichOneof("result") == "error", answer
    decoded = decode_status(answer.error.SerializeToString())
    assert decoded is not None
    return decoded[2]
