"""A seeded fuzz: good requests of every RPC with bytes or fields changed. Whatever comes, the
reason is one of the catalogue's for bad requests, and the server goes on."""

from __future__ import annotations

import random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from carv.errors import decode_status
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from tests.server.wire import (
    create,
    estimate_request,
    failure_of,
    path,
    predict_request,
    send,
    stream,
)

METHODS = [
    "ListTeachers",
    "GetTeacher",
    "CreateConditioning",
    "CreateLatents",
    "EstimateGradient",
    "PredictNoise",
    "RefineGradient",
    "StreamGradients",
]
MUTATIONS = 300


def _mutated(rng: random.Random, data: bytes) -> bytes:
    values = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(values)) if values else 0
        match rng.randrange(5):
            case 0 if values:
                values[at] ^= 1 << rng.randrange(8)
            case 1 if values:
                values[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                del values[at : at + rng.choice([1, 2, 8, 64])]
            case 3:
                values[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
            case _:
                cut = values[at : at + rng.choice([4, 16, 64])]
                values[at:at] = cut
    return bytes(values)


_EXTREMES: dict[Any, list[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: [0, -1, 3, 2**31 - 1, -(2**31)],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 3, 4, 9, -1, 2**31 - 1],
    FieldDescriptor.CPPTYPE_INT64: [0, -1, 3, 2**32, 2**62, 2**63 - 1, -(2**63)],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 2**64 - 1],
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("nan")],
    FieldDescriptor.CPPTYPE_BOOL: [True, False],
}


def _spoil(rng: random.Random, message: Any) -> None:
    """Change one field somewhere in a message: drop it, set it to an extreme, repeat it."""
    message.SetInParent()
    if not message.DESCRIPTOR.fields:
        return
    field = rng.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        value[rng.choice(["class_label", "x"])].shape.append(rng.choice([-1, 0, 2]))
    elif field.message_type is not None:
        if field.is_repeated:
            _spoil(rng, rng.choice(value) if len(value) and rng.random() < 0.9 else value.add())
        else:
            _spoil(rng, value)
    else:
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            new: Any = "\u20ac" * rng.choice([0, 1, 3000])
            if field.type == FieldDescriptor.TYPE_BYTES:
                new = rng.choice([b"", bytes(8), value[:-1], value + b"\xff" * 4])
        else:
            new = rng.choice(_EXTREMES[field.cpp_type])
        if not field.is_repeated:
            setattr(message, field.name, new)
        elif len(value) and rng.random() < 0.7:
            value[rng.randrange(len(value))] = new
        else:
            value.append(new)


def _good(channel: grpc.Channel) -> dict[str, list[Message]]:
    handles = create(channel, [0, 1])
    explicit = estimate_request(handles, renders=2)
    explicit.explicit_draws.CopyFrom(predict_request("", [1, 500, 999]).explicit_draws)
    explicit.objective.prior.range.max_fraction = 0.7
    table = estimate_request(handles, renders=1, draws=2)
    table.objective.weighting.table.values.extend([1.0] * 1000)
    sources = [
        conditioning_pb2.ConditioningSource(classes=conditioning_pb2.ClassSource(class_ids=[0, 2])),
        conditioning_pb2.ConditioningSource(
            blend=conditioning_pb2.BlendSource(handles=handles, weights=[0.5, 0.5])
        ),
    ]
    refined = pb.RefineGradientRequest(
        latents=table.latents, objective=explicit.objective, seed=1, max_draws=8
    )
    return {
        "ListTeachers": [pb.ListTeachersRequest()],
        "GetTeacher": [pb.GetTeacherRequest(teacher="mixture")],
        "CreateConditioning": [pb.CreateConditioningRequest(source=s) for s in sources],
        "CreateLatents": [pb.CreateLatentsRequest(latents=explicit.latents)],
        "EstimateGradient": [estimate_request(handles), explicit, table],
        "PredictNoise": [predict_request(handles[0], [3, 700])],
        "RefineGradient": [refined],
        "StreamGradients": [
            pb.StreamGradientsRequest(id=1, estimate=table, timeout_seconds=20.0),
            pb.StreamGradientsRequest(id=2, cancel=pb.CancelGradient()),
        ],
    }


# What a bad message may end in; a teacher's overflow at absurd finite latents is its own reason.
ALLOWED = {
    "MALFORMED_MESSAGE",
    "INVALID_FIELD",
    "TEACHER_NOT_FOUND",
    "CONDITIONING_NOT_FOUND",
    "LATENTS_NOT_FOUND",
    "NON_FINITE_RESULT",
    "DEADLINE_EXPIRED",  # of a request on a stream, within no time
}


def _outcome(channel: grpc.Channel, method: str, request: Message | bytes) -> str:
    try:
        if method == "StreamGradients":
            return _streamed(channel, request)
        (stream if method == "RefineGradient" else send)(channel, method, request)
    except grpc.RpcError as error:
        failure = failure_of(error)
        assert failure.reason in ALLOWED and failure.domain == "carv", (failure, request)
        return failure.reason
    return "OK"


def _streamed(channel: grpc.Channel, request: Message | bytes) -> str:
    """One message on a stream of its own; raises where the stream fails."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    answers = list(channel.stream_stream(path("StreamGradients"))(iter([data]), timeout=20.0))
    assert len(answers) <= 1
    for answer in map(pb.StreamGradientsResponse.FromString, answers):
        if answer.HasField("error"):
            decoded = decode_status(answer.error.SerializeToString())
            assert decoded is not None and decoded[2].reason in ALLOWED, (answer, request)
            return decoded[2].reason
    return "OK"


@pytest.mark.parametrize("method", METHODS)
def test_changed_bytes_are_survived(channel: grpc.Channel, method: str) -> None:
    rng = random.Random(METHODS.index(method))
    good = [request.SerializeToString() for request in _good(channel)[method]]
    outcomes = {
        _outcome(channel, method, _mutated(rng, good[i % len(good)])) for i in range(MUTATIONS)
    }
    assert "MALFORMED_MESSAGE" in outcomes, "the fuzz is too gentle"
    assert "INTERNAL" not in outcomes and len(outcomes) > 1


@pytest.mark.parametrize("method", METHODS[1:])
def test_changed_fields_are_survived(channel: grpc.Channel, method: str) -> None:
    rng = random.Random(METHODS.index(method))
    good = _good(channel)[method]
    outcomes: set[str] = set()
    for i in range(MUTATIONS):
        request = type(good[0])()
        request.CopyFrom(good[i % len(good)])
        for _ in range(rng.choice([1, 1, 2, 5])):
            _spoil(rng, request)
        outcomes.add(_outcome(channel, method, request))
    refused = "TEACHER_NOT_FOUND" if method == "GetTeacher" else "INVALID_FIELD"
    assert refused in outcomes, "the fuzz is too gentle"
    after = estimate_request(create(channel, [0, 1]))
    assert _outcome(channel, "EstimateGradient", after) == "OK"
