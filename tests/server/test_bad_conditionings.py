"""CreateConditioning's bad sources, unknown teachers, and handles that are not there."""

from __future__ import annotations

import asyncio
import threading

import grpc
import numpy as np
import pytest

from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.conditioning import StoreConfig
from tests.server.teachers import oracle_teacher, running
from tests.server.wire import (
    Failure,
    create,
    estimate_request,
    fails,
    failure_of,
    path,
    predict_request,
    send,
)

Source = conditioning_pb2.ConditioningSource


def _classes(*class_ids: int) -> Source:
    return Source(classes=conditioning_pb2.ClassSource(class_ids=class_ids))


def _tensor(name: str, values: object) -> Source:
    encoded = {name: encode_tensor(np.asarray(values))}
    return Source(tensors=conditioning_pb2.TensorSource(tensors=encoded))


def _blend(handles: list[str], weights: list[float]) -> Source:
    return Source(blend=conditioning_pb2.BlendSource(handles=handles, weights=weights))


LABEL = "source.tensors.tensors[class_label]"
WEIGHTS = "source.blend.weights"
PROMPTS = conditioning_pb2.PromptSource

CASES: dict[str, tuple[Source, set[str]]] = {
    "none": (Source(), {"source"}),
    "prompts": (Source(prompts=PROMPTS(prompts=["a red torus"])), {"source.prompts"}),
    "no prompts": (Source(prompts=PROMPTS()), {"source.prompts.prompts"}),
    "long prompt": (
        Source(prompts=PROMPTS(prompts=["a", "b" * 2001])),
        {"source.prompts.prompts[1]"},
    ),
    "no classes": (_classes(), {"source.classes.class_ids"}),
    "257 classes": (_classes(*[0] * 257), {"source.classes.class_ids"}),
    "every class at fault": (
        _classes(7, 1, -2),
        {"source.classes.class_ids[0]", "source.classes.class_ids[2]"},
    ),
    "class above": (_classes(0, 3), {"source.classes.class_ids[1]"}),
    "class below": (_classes(-1), {"source.classes.class_ids[0]"}),
    "unknown tensor": (_tensor("text", 0), {"source.tensors.tensors[text]", LABEL}),
    "float label": (_tensor("class_label", 1.0), {f"{LABEL}.dtype"}),
    "label vector": (_tensor("class_label", [1]), {f"{LABEL}.shape"}),
    "label above": (_tensor("class_label", 4), {LABEL}),
    "empty blend": (_blend([], []), {"source.blend.handles", WEIGHTS}),
    "weights missing": (_blend(["a", "b"], [1.0]), {WEIGHTS}),
    "weights of sum 0.9": (_blend(["a", "b"], [0.5, 0.4]), {WEIGHTS}),
    "weight negative": (_blend(["a", "b"], [1.5, -0.5]), {WEIGHTS}),
    "weight NaN": (_blend(["a", "b"], [float("nan"), 1.0]), {WEIGHTS}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_source_is_named(channel: grpc.Channel, case: str) -> None:
    source, fields = CASES[case]
    failure = fails(channel, "CreateConditioning", pb.CreateConditioningRequest(source=source))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.domain == "carv"
    assert failure.fields == fields


def test_class_labels_do_not_blend(channel: grpc.Channel) -> None:
    request = pb.CreateConditioningRequest(source=_blend(create(channel, [0, 1]), [0.5, 0.5]))
    failure = fails(channel, "CreateConditioning", request)
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", {"source.blend.handles"})


def test_a_blend_of_unknown_handles_names_each(channel: grpc.Channel) -> None:
    known = create(channel, [0])
    request = pb.CreateConditioningRequest(source=_blend(["a", *known, "b"], [0.25, 0.5, 0.25]))
    failure = fails(channel, "CreateConditioning", request)
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "CONDITIONING_NOT_FOUND",
    )
    assert failure.fields == {"source.blend.handles[0]", "source.blend.handles[2]"}


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("GetTeacher", pb.GetTeacherRequest),
        ("CreateConditioning", pb.CreateConditioningRequest),
        ("EstimateGradient", pb.EstimateGradientRequest),
        ("PredictNoise", pb.PredictNoiseRequest),
    ],
)
def test_an_unknown_teacher_is_not_found(
    channel: grpc.Channel, method: str, request_type: type[pb.GetTeacherRequest]
) -> None:
    failure = fails(channel, method, request_type(teacher="nobody"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "TEACHER_NOT_FOUND")
    assert (failure.domain, failure.fields) == ("carv", {"teacher"})
    assert "nobody" in failure.message and "mixture" in failure.message


def test_unknown_handles_are_not_found_once_the_rest_holds(channel: grpc.Channel) -> None:
    known = create(channel, [0])[0]
    request = estimate_request([known, "gone"])
    failure = fails(channel, "EstimateGradient", request)
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "CONDITIONING_NOT_FOUND",
    )
    assert failure.fields == {"objective.branches[1].conditionings[0]"}
    request.sampling.draws = 0
    assert fails(channel, "EstimateGradient", request).fields == {"sampling.draws"}
    failure = fails(channel, "PredictNoise", predict_request("gone", [5]))
    assert (failure.reason, failure.fields) == ("CONDITIONING_NOT_FOUND", {"conditionings[0]"})


@pytest.mark.parametrize("renders", [16, 256])
def test_a_status_of_many_violations_still_arrives(channel: grpc.Channel, renders: int) -> None:
    """gRPC refuses trailing metadata above 8 KiB at random and above 16 KiB always; the client
    then sees RESOURCE_EXHAUSTED and would not create the handles again."""
    request = estimate_request(["x"], renders=renders, draws=1)
    branch = request.objective.branches[0]
    branch.conditionings[:] = [f"prompt-{i:040d}" for i in range(renders)]
    failures = [fails(channel, "EstimateGradient", request) for _ in range(3)]
    for failure in failures:
        assert failure.reason == "CONDITIONING_NOT_FOUND"
        assert len(failure.violations) >= 10
        assert failure.violations[0].field == "objective.branches[0].conditionings[0]"
    if renders > 16:
        *listed, last = failures[0].violations
        assert f"{renders - len(listed)} are not listed" in last.description
    branch.conditionings[:] = ["é€😀" * 20] * 1000
    failure = fails(channel, "EstimateGradient", request)
    assert failure.fields == {"objective.branches[0].conditionings"}


def test_a_handle_expires_when_unused_and_use_extends_it() -> None:
    async def scenario() -> Failure:
        store, now = StoreConfig(seconds_to_live=0.4), 0.0
        async with running(oracle_teacher(), store=store) as (server, channel):
            server._front._service._store._store._clock = lambda: now
            create_call = channel.unary_unary(path("CreateConditioning"))
            reply = await create_call(
                pb.CreateConditioningRequest(source=_classes(0)).SerializeToString()
            )
            handle = pb.CreateConditioningResponse.FromString(reply).conditionings[0].handle
            estimate = channel.unary_unary(path("EstimateGradient"))
            data = estimate_request([handle]).SerializeToString()
            for _ in range(5):  # 1.5 s in all, never 0.4 s unused
                now += 0.3
                await estimate(data)
            now += 0.41
            try:
                await estimate(data)
            except grpc.aio.AioRpcError as error:
                return failure_of(error)
            raise AssertionError("the handle never expired")

    failure = asyncio.run(scenario())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "CONDITIONING_NOT_FOUND",
    )
    assert failure.fields == {"objective.branches[0].conditionings[0]"}


def test_creating_again_makes_the_same_request_work(channel: grpc.Channel) -> None:
    handles = create(channel, [2, 0, 1])
    assert create(channel, [0, 1, 2]) == [handles[1], handles[2], handles[0]]
    replies: list[bytes] = []
    request = estimate_request(handles)

    def work() -> None:
        create(channel, [0, 1, 2])
        reply = pb.EstimateGradientResponse.FromString(send(channel, "EstimateGradient", request))
        replies.append(reply.gradient.SerializeToString())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == 4 and len(set(replies)) == 1
