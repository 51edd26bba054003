"""Latents sent once: handles stand for them wherever latents are taken, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import Message

from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv.v1 import tensor_pb2
from carv_server.config import ServerConfig
from carv_server.latents import LatentStore, latents_handle
from carv_server.serve import RunningServer
from carv_server.store import StoreConfig
from tests.server.teachers import oracle_teacher, running
from tests.server.wire import (
    create,
    estimate_request,
    fails,
    failure_of,
    latents,
    path,
    predict_request,
    send,
    stream,
    stream_fails,
)
from tests.support.oracle import EVENT_SHAPE

TENSOR = encode_tensor(latents(2, seed=7))


def keep(channel: grpc.Channel, tensor: tensor_pb2.Tensor = TENSOR, teacher: str = "") -> str:
    request = pb.CreateLatentsRequest(teacher=teacher, latents=tensor)
    data = send(channel, "CreateLatents", request)
    return pb.CreateLatentsResponse.FromString(data).latents.handle


async def keep_async(channel: grpc.aio.Channel, values: np.ndarray, teacher: str = "") -> str:
    request = pb.CreateLatentsRequest(teacher=teacher, latents=encode_tensor(values))
    data = await channel.unary_unary(path("CreateLatents"))(request.SerializeToString())
    return pb.CreateLatentsResponse.FromString(data).latents.handle


def refine_request(handle: str) -> pb.RefineGradientRequest:
    posed = estimate_request([handle])
    return pb.RefineGradientRequest(
        latents=posed.latents, objective=posed.objective, seed=7, max_draws=32
    )


def profile_request(handle: str) -> pb.ProfileTeacherRequest:
    posed = estimate_request([handle])
    return pb.ProfileTeacherRequest(
        latents=posed.latents, objective=posed.objective, seed=7, bins=4, draws_per_bin=4
    )


def final(kind: Any, pieces: list[bytes]) -> Any:
    return kind.FromString(pieces[-1])


ASK: dict[str, tuple[Callable[[str], Message], Callable[[grpc.Channel, Message], Any]]] = {
    "EstimateGradient": (
        lambda c: estimate_request([c]),
        lambda channel, request: decode_tensor(
            pb.EstimateGradientResponse.FromString(
                send(channel, "EstimateGradient", request)
            ).gradient
        ),
    ),
    "PredictNoise": (
        lambda c: predict_request(c, [3, 700]),
        lambda channel, request: decode_tensor(
            pb.PredictNoiseResponse.FromString(
                send(channel, "PredictNoise", request)
            ).noise_prediction
        ),
    ),
    "RefineGradient": (
        refine_request,
        lambda channel, request: decode_tensor(
            final(pb.RefineGradientResponse, stream(channel, "RefineGradient", request)).gradient
        ),
    ),
    "ProfileTeacher": (
        profile_request,
        lambda channel, request: [
            each.second_moment
            for each in final(
                pb.ProfileTeacherResponse, stream(channel, "ProfileTeacher", request)
            ).profile.bins
        ],
    ),
}


@pytest.mark.parametrize("method", ASK)
def test_a_handle_stands_for_its_latents(channel: grpc.Channel, method: str) -> None:
    make, ask = ASK[method]
    request: Any = make(create(channel, [0])[0])
    by_value = ask(channel, request)
    request.latents_handle = keep(channel)
    assert not request.HasField("latents"), "one of them"
    np.testing.assert_allclose(ask(channel, request), by_value, rtol=1e-5, atol=1e-6)


def test_a_handle_stands_for_reference_latents(channel: grpc.Channel) -> None:
    _, ask = ASK["EstimateGradient"]
    first, second = create(channel, [0, 1])
    request = estimate_request([first, second])
    request.objective.branches[1].use_reference_latents = True
    request.objective.reference_latents.CopyFrom(encode_tensor(latents(2, seed=8)))
    by_value = ask(channel, request)
    request.objective.reference_latents_handle = keep(channel, request.objective.reference_latents)
    np.testing.assert_allclose(ask(channel, request), by_value, rtol=1e-5, atol=1e-6)
    request.objective.reference_latents_handle = keep(channel, encode_tensor(latents(3)))
    failure = fails(channel, "EstimateGradient", request)
    assert failure.fields == {"objective.reference_latents_handle.shape"}
    assert "[3, 2, 4, 4]; the latents are [2, 2, 4, 4]" in failure.message


@pytest.mark.parametrize("method", ASK)
def test_a_handle_that_is_gone_is_not_found_once_the_rest_holds(
    channel: grpc.Channel, method: str
) -> None:
    request: Any = ASK[method][0]("gone too")
    request.latents_handle = "gone"
    fail = stream_fails if method in ("RefineGradient", "ProfileTeacher") else fails
    failure = fail(channel, method, request)
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "LATENTS_NOT_FOUND")
    conditioning = (
        "conditionings[0]" if method == "PredictNoise" else "objective.branches[0].conditionings[0]"
    )
    assert failure.fields == {"latents_handle", conditioning}, "both are named"
    if method == "EstimateGradient":
        request.sampling.draws = 0
        assert fail(channel, method, request).fields == {"sampling.draws"}


def test_gone_reference_latents_are_named(channel: grpc.Channel) -> None:
    request = estimate_request(create(channel, [0]))
    request.objective.branches[0].use_reference_latents = True
    request.objective.reference_latents_handle = "gone"
    failure = fails(channel, "EstimateGradient", request)
    assert failure.reason == "LATENTS_NOT_FOUND"
    assert failure.fields == {"objective.reference_latents_handle"}


BAD: dict[str, tuple[tensor_pb2.Tensor | None, str]] = {
    "none": (None, "latents"),
    "no renders": (encode_tensor(latents(0)), "latents.shape"),
    "too many renders": (encode_tensor(latents(257)), "latents.shape"),
    "another shape": (encode_tensor(np.zeros((2, 3), np.float32)), "latents.shape"),
    "integers": (encode_tensor(np.zeros((2, *EVENT_SHAPE), np.int64)), "latents.dtype"),
    "not a number": (
        encode_tensor(np.full((1, *EVENT_SHAPE), np.nan, np.float32)),
        "latents.data",
    ),
    "infinite": (encode_tensor(np.full((1, *EVENT_SHAPE), np.inf, np.float16)), "latents.data"),
    "too few bytes": (
        tensor_pb2.Tensor(dtype=TENSOR.dtype, shape=TENSOR.shape, data=TENSOR.data[:-1]),
        "latents.data",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_latents_are_not_kept(channel: grpc.Channel, case: str) -> None:
    tensor, field = BAD[case]
    failure = fails(channel, "CreateLatents", pb.CreateLatentsRequest(latents=tensor))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == {field}


def test_an_unknown_teacher_keeps_nothing(channel: grpc.Channel) -> None:
    request = pb.CreateLatentsRequest(teacher="nobody", latents=TENSOR)
    assert fails(channel, "CreateLatents", request).reason == "TEACHER_NOT_FOUND"


def test_handles_are_a_function_of_teacher_and_what_was_sent_alone() -> None:
    values = latents(2)
    tensors = [
        encode_tensor(values),
        encode_tensor(values, "float16"),
        encode_tensor(values, "bfloat16"),
        encode_tensor(values[:1]),
        encode_tensor(values.reshape(2, -1)),
        encode_tensor(-values),
    ]
    handles = [latents_handle(digest, tensor) for digest in ("a", "b") for tensor in tensors]
    assert len(set(handles)) == len(handles)
    assert handles[0] == latents_handle("a", encode_tensor(values.copy()))
    assert all(handle.startswith("latents-") for handle in handles)


def test_the_least_recently_used_make_room_and_limits_are_stated() -> None:
    async def main() -> None:
        store = StoreConfig(max_entries=2, max_bytes=4096, seconds_to_live=60.0)
        async with running(oracle_teacher(), latents=store) as (server, channel):
            data = await channel.unary_unary(path("GetTeacher"))(b"")
            limits = pb.GetTeacherResponse.FromString(data).teacher.limits
            assert (limits.max_kept_latents, limits.max_kept_latents_bytes) == (2, 4096)
            kept = server._served["mixture"].latents
            first, second = [await keep_async(channel, latents(2, seed=i)) for i in range(2)]
            assert kept.get(first) is not None  # used last
            third = await keep_async(channel, latents(2, seed=2))
            assert kept.get(second) is None
            assert kept.get(first) is not None and kept.get(third) is not None
            # 33 renders of 128 bytes are more than is kept at all.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await keep_async(channel, latents(33))
            assert "4224 bytes as float32; at most 4096" in (caught.value.details() or "")
            full = await keep_async(channel, latents(32))
            assert kept.get(full) is not None and kept.get(first) is None

    asyncio.run(main())


def test_kept_latents_expire_when_unused() -> None:
    now = [1000.0]
    store = LatentStore(StoreConfig(seconds_to_live=10.0), lambda: now[0])
    assert store.put("h", latents(1)) == 1010.0
    now[0] += 9.0
    assert store.get("h") is not None
    now[0] += 9.0
    assert store.get("h") is not None, "use extends it"
    now[0] += 10.0
    assert store.get("h") is None


def test_one_teachers_latents_are_not_anothers() -> None:
    """Not even where the weights are the same, and with them the handles."""

    async def main() -> None:
        teacher = oracle_teacher()
        config = ServerConfig(address="127.0.0.1:0")
        async with (
            RunningServer(config, {"one": teacher, "two": teacher}) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):

            async def gone() -> set[str]:
                request = estimate_request(["c"])
                request.teacher, request.latents_handle = "two", handle
                call = channel.unary_unary(path("EstimateGradient"))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(request.SerializeToString())
                return set(failure_of(caught.value).fields)

            conditioning = "objective.branches[0].conditionings[0]"
            handle = await keep_async(channel, latents(2), "one")
            assert await gone() == {"latents_handle", conditioning}
            assert await keep_async(channel, latents(2), "two") == handle
            assert await gone() == {conditioning}

    asyncio.run(main())
