"""Messages that are too large, or not messages at all."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from carv import DEFAULT_MAX_MESSAGE_BYTES
from carv.v1 import teacher_service_pb2 as pb
from tests.server.teachers import GatedTeacher, running
from tests.server.wire import Failure, create_async, fails, failure_of, path, predict_request, send

METHODS = ["ListTeachers", "GetTeacher", "CreateConditioning", "EstimateGradient", "PredictNoise"]


LIMIT = 100 * 1024


def _refusal(size: int) -> Failure:
    """How a server with the limit of 100 KiB refuses so many bytes; and it must go on."""

    async def scenario() -> Failure:
        async with running(GatedTeacher(), max_message_bytes=LIMIT) as (_, channel):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path("EstimateGradient"))(bytes(size), timeout=20)
            assert await channel.unary_unary(path("ListTeachers"))(b"", timeout=20)
        return failure_of(caught.value)

    return asyncio.run(scenario())


def test_a_message_just_over_the_limit_gets_a_rich_status() -> None:
    failure = _refusal(LIMIT + 1)
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (failure.reason, failure.domain) == ("MESSAGE_TOO_LARGE", "carv")
    assert failure.retry_delay_seconds is None
    assert str(LIMIT + 1) in failure.message and str(LIMIT) in failure.message
    assert _refusal(LIMIT).reason == "MALFORMED_MESSAGE", "zeros, but not too many of them"


def test_a_message_far_over_the_limit_is_refused_by_grpc() -> None:
    failure = _refusal(2 * LIMIT + 1)
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    assert "larger than max" in failure.message


def test_the_limit_is_64_mib_unless_configured(channel: grpc.Channel) -> None:
    teacher = pb.GetTeacherResponse.FromString(send(channel, "GetTeacher", b"")).teacher
    assert teacher.limits.max_message_bytes == DEFAULT_MAX_MESSAGE_BYTES == 64 * 2**20
    data = bytes(DEFAULT_MAX_MESSAGE_BYTES)
    assert fails(channel, "EstimateGradient", data).reason == "MALFORMED_MESSAGE"


def test_a_reply_over_the_limit_is_refused_before_the_work() -> None:
    """1024 predictions of 128 bytes come to more than 100 KiB; the request itself does not."""

    async def scenario() -> None:
        teacher = GatedTeacher()
        async with running(teacher, max_message_bytes=LIMIT) as (_, channel):
            handle = await create_async(channel)
            request = predict_request(handle, [1] * 1024, renders=1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path("PredictNoise"))(request.SerializeToString())
        failure = failure_of(caught.value)
        assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (failure.reason, failure.retry_delay_seconds) == ("MESSAGE_TOO_LARGE", None)
        assert str(1024 * 128) in failure.message
        assert teacher.forwards == []

    asyncio.run(scenario())


@pytest.mark.parametrize("method", METHODS)
def test_garbage_is_malformed(channel: grpc.Channel, method: str) -> None:
    for data in (b"\xff\xff\xff", b"\x0a\x05ab", b"\x07", bytes(100_000) + b"\xff"):
        failure = fails(channel, method, data)
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert (failure.reason, failure.domain) == ("MALFORMED_MESSAGE", "carv")
        assert f"carv.v1.{method}Request" in failure.message


def test_a_string_that_is_not_utf8_is_malformed(channel: grpc.Channel) -> None:
    data = b"\x0a\x02\xc3\x28"  # field 1, two bytes, the second no continuation
    for method in ("GetTeacher", "CreateConditioning", "EstimateGradient", "PredictNoise"):
        assert fails(channel, method, data).reason == "MALFORMED_MESSAGE"


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    assert fails(channel, "DivideByZero", b"").code == grpc.StatusCode.UNIMPLEMENTED
