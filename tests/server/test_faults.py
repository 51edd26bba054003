"""A teacher that gives NaN or raises fails the request that caused it, and no other."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from tests.server.closed_form import noise_of, noisy, predicted, relative_error
from tests.server.teachers import FaultyTeacher, GatedTeacher, running, waiting
from tests.server.wire import Failure, create_async, failure_of, latents, path, predict_request

NAN_AT, RAISE_AT = 321, 654
SEED = 2**63 + 5


class GatedFaultyTeacher(GatedTeacher):
    """Its forwards wait at the gate before they spoil or raise."""

    def __init__(self) -> None:
        super().__init__()
        self._inner = FaultyTeacher(nan_at=NAN_AT, raise_at=RAISE_AT)  # pyright: ignore[reportAttributeAccessIssue]


async def _together(requests: list[tuple[str, bytes]]) -> list[bytes | Failure]:
    """All of them in one microbatch: a first request holds the device until all wait."""
    teacher = GatedFaultyTeacher()
    async with running(teacher) as (server, channel):
        handle = await create_async(channel)
        first = _send(channel, "PredictNoise", predict_request(handle, [1]).SerializeToString())
        task = asyncio.create_task(first)
        assert await asyncio.to_thread(teacher.entered.wait, 10)
        tasks = [asyncio.create_task(_send(channel, *request)) for request in requests]
        await waiting(server, len(requests))
        teacher.gate.set()
        answers = await asyncio.gather(*tasks)
        await task
    assert len(teacher.forwards[1]) > len(teacher.forwards[0])
    return answers


async def _send(channel: grpc.aio.Channel, method: str, data: bytes) -> bytes | Failure:
    call: Any = channel.unary_unary(path(method))(data, timeout=20)
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error)


async def _handle() -> str:
    async with running(FaultyTeacher(nan_at=NAN_AT, raise_at=RAISE_AT)) as (_, channel):
        return await create_async(channel)


def _predict(handle: str, *timesteps: int) -> tuple[str, bytes]:
    return "PredictNoise", predict_request(handle, timesteps, seed=SEED).SerializeToString()


def _estimate(handle: str, *timesteps: int) -> tuple[str, bytes]:
    request = pb.EstimateGradientRequest(latents=encode_tensor(latents(2, SEED)), seed=SEED)
    request.objective.branches.add(conditionings=[handle]).coefficient.constant = 1.0
    request.explicit_draws.CopyFrom(predict_request(handle, timesteps).explicit_draws)
    return "EstimateGradient", request.SerializeToString()


def _is_right(answer: bytes | Failure, *timesteps: int) -> bool:
    """Whether a prediction is the closed form."""
    assert isinstance(answer, bytes), answer
    found = decode_tensor(pb.PredictNoiseResponse.FromString(answer).noise_prediction)
    x = latents(2, SEED)
    expected = [
        predicted(
            noisy(x[r], timesteps, noise_of(SEED, r, np.arange(len(timesteps)))), timesteps, 0
        )
        for r in range(2)
    ]
    return relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("request_of", [_predict, _estimate])
def test_a_non_finite_row_fails_alone_and_is_named(request_of: Any) -> None:
    """Broken by looking for non-finite values in a microbatch as a whole."""

    async def scenario() -> list[bytes | Failure]:
        handle = await _handle()
        return await _together(
            [_predict(handle, 10, 20), request_of(handle, 30, NAN_AT), _predict(handle, 40)]
        )

    before, spoiled, after = asyncio.run(scenario())
    assert _is_right(before, 10, 20) and _is_right(after, 40)
    assert isinstance(spoiled, Failure)
    assert spoiled.code == grpc.StatusCode.INTERNAL
    assert (spoiled.reason, spoiled.domain) == ("NON_FINITE_RESULT", "carv")
    for fact in (f"render {0}", f"timestep {NAN_AT}", "noise index 1", f"seed {SEED}"):
        assert fact in spoiled.message


def test_a_forward_that_raises_fails_its_own_request_alone() -> None:
    """Broken by failing all requests of a microbatch whose forward raised."""

    async def scenario() -> list[bytes | Failure]:
        handle = await _handle()
        return await _together(
            [_predict(handle, 10), _estimate(handle, RAISE_AT, 20), _predict(handle, 30, 40)]
        )

    before, failed, after = asyncio.run(scenario())
    assert _is_right(before, 10) and _is_right(after, 30, 40)
    assert isinstance(failed, Failure)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "REPLICA_FAILED")
    assert "MemoryError" in failed.message
    assert "out of device memory" not in failed.message, "a trace is for the log, not the wire"
