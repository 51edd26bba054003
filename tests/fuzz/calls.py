"""One message to one method, and what may come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from carv.errors import Reason, decode_status
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from tests.server.wire import estimate_request, failure_of, path, predict_request
from tests.support.process import ServerProcess

__all__ = ["METHODS", "Fuzzed", "good_requests", "message_of", "outcome"]

_SECONDS = 20.0
_SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"]
METHODS = tuple(_SERVICE.methods_by_name)

# What a request alone can bring about. Not INTERNAL: a defect, nor REPLICA_FAILED: the forward
# raised. NON_FINITE_RESULT is of the teacher's arithmetic: finite latents of 1e38 overflow in it.
ALLOWED = {
    Reason.MALFORMED_MESSAGE,
    Reason.INVALID_FIELD,
    Reason.TEACHER_NOT_FOUND,
    Reason.CONDITIONING_NOT_FOUND,
    Reason.LATENTS_NOT_FOUND,
    Reason.MESSAGE_TOO_LARGE,
    Reason.QUEUE_FULL,
    Reason.DEADLINE_EXPIRED,  # of a request on a stream, within no time
    Reason.NON_FINITE_RESULT,
}


@dataclass(frozen=True)
class Fuzzed:
    """Under test.

    Attributes:
        handles: of conditionings that are there.
    """

    channel: grpc.Channel
    handles: tuple[str, ...]
    server: ServerProcess


def message_of(method: str) -> type[Any]:
    """Of the requests of a method."""
    return getattr(pb, _SERVICE.methods_by_name[method].input_type.name)


def outcome(fuzzed: Fuzzed, method: str, request: Message | bytes) -> str:
    """The reason of the failure, or OK; any other than those of bad requests is an error."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    try:
        reason = _sent(fuzzed.channel, method, data)
    except grpc.RpcError as error:
        failure = failure_of(error)
        reason = failure.reason
        assert reason in ALLOWED and failure.domain == "carv", (failure, str(request)[:1000])
    return reason


def _sent(channel: grpc.Channel, method: str, data: bytes) -> str:
    described, name = _SERVICE.methods_by_name[method], path(method)
    if described.client_streaming:
        answers = list(channel.stream_stream(name)(iter([data]), timeout=_SECONDS))
        assert len(answers) <= 1
        for answer in map(pb.StreamGradientsResponse.FromString, answers):
            if answer.HasField("error"):
                decoded = decode_status(answer.error.SerializeToString())
                assert decoded is not None and decoded[2].reason in ALLOWED, str(answer)[:1000]
                return decoded[2].reason
    elif described.server_streaming:
        list(channel.unary_stream(name)(data, timeout=_SECONDS))
    else:
        channel.unary_unary(name)(data, timeout=_SECONDS)
    return "OK"


def good_requests(fuzzed: Fuzzed) -> Iterator[tuple[str, Any]]:
    """At least one of each method."""
    handles = fuzzed.handles
    estimate = estimate_request(handles[:2], renders=2, draws=4)
    explicit = estimate_request(handles[:1], renders=2)
    explicit.explicit_draws.CopyFrom(predict_request("", [1, 500, 999]).explicit_draws)
    common: dict[str, Any] = {"latents": estimate.latents, "objective": estimate.objective}
    source = conditioning_pb2.ConditioningSource()
    source.classes.class_ids.append(1)
    yield "ListTeachers", pb.ListTeachersRequest()
    yield "GetTeacher", pb.GetTeacherRequest(teacher="mixture")
    yield "CreateConditioning", pb.CreateConditioningRequest(source=source)
    yield "CreateLatents", pb.CreateLatentsRequest(latents=estimate.latents)
    yield "EstimateGradient", estimate
    yield "EstimateGradient", explicit
    yield "StreamGradients", pb.StreamGradientsRequest(id=1, estimate=estimate)
    yield "PredictNoise", predict_request(handles[0], [3, 700])
    yield "RefineGradient", pb.RefineGradientRequest(seed=1, max_draws=8, **common)
    yield (
        "ProfileTeacher",
        pb.ProfileTeacherRequest(seed=1, bins=4, draws_per_bin=4, **common),
    )
