"""Handles over the wire: content-addressed, in order, the teacher's own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import torch

from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import AsyncTeacherClient, InvalidRequestError, TeacherClient
from carv_server.config import ServerConfig
from carv_server.serve import RunningServer
from carv_server.teachers.analytic import load_analytic
from tests.server.closed_form import UNCONDITIONAL
from tests.server.teachers import oracle_teacher, running
from tests.server.wire import create, create_async, estimate_request, latents, path, send
from tests.support.oracle import write_oracle_folder


def test_the_same_source_has_the_same_handle_on_another_server(
    channel: grpc.Channel, tmp_path: Path
) -> None:
    """A restarted server gives the old handles again, so clients need no new ones."""
    here = create(channel, [1])
    teacher = load_analytic(write_oracle_folder(tmp_path), torch.device("cpu"))

    async def elsewhere() -> str:
        async with running(teacher) as (_, other):
            return await create_async(other, 1)

    assert [asyncio.run(elsewhere())] == here == create(channel, [1])


def test_handles_come_in_the_order_asked_for(channel: grpc.Channel) -> None:
    one_by_one = [create(channel, [c])[0] for c in (0, 1, 2)]
    assert len(set(one_by_one)) == 3
    order = [2, 0, 1, 2]
    assert create(channel, order) == [one_by_one[c] for c in order]


def test_a_handle_says_when_it_expires(channel: grpc.Channel) -> None:
    source = conditioning_pb2.ConditioningSource(
        classes=conditioning_pb2.ClassSource(class_ids=[0])
    )
    before = time.time()
    reply = send(channel, "CreateConditioning", pb.CreateConditioningRequest(source=source))
    made = pb.CreateConditioningResponse.FromString(reply)
    expires = made.conditionings[0].expire_time.ToNanoseconds() / 1e9
    assert before + 3600 - 1e-3 <= expires <= time.time() + 3600
    teacher = pb.GetTeacherResponse.FromString(send(channel, "GetTeacher", b"")).teacher
    assert made.teacher_digest == teacher.digest and len(teacher.digest) == 64


def test_class_tensor_and_null_sources_condition_alike(client: TeacherClient) -> None:
    """The label as a class id, as the raw tensor, or as the null source: the same answers."""
    x = latents(2)

    def gradient(**source: object) -> np.ndarray:
        conditioning = client.create_conditioning(**source)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return client.estimate_gradient(x, conditioning, guidance_scale=1.0, seed=4).gradient

    label = {"class_label": np.int64(2)}
    assert np.array_equal(gradient(class_id=2), gradient(tensors=label))
    null = {"class_label": np.int64(UNCONDITIONAL)}
    assert np.array_equal(gradient(unconditional=True), gradient(tensors=null))
    assert np.array_equal(
        gradient(unconditional=True), client.estimate_gradient(x, seed=4).gradient
    )
    assert not np.array_equal(gradient(class_id=2), gradient(unconditional=True))


def test_labels_cannot_be_blended(client: TeacherClient) -> None:
    one, other = client.create_conditioning(class_id=[0, 1])
    with pytest.raises(InvalidRequestError, match="cannot be blended") as caught:
        client.create_conditioning(blend=[(one, 0.5), (other, 0.5)])
    assert [v.field for v in caught.value.violations] == ["source.blend.handles"]


def test_one_set_of_weights_under_two_ids_keeps_two_sets_of_handles() -> None:
    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", drain_seconds=5.0)
        teachers = {"one": oracle_teacher(), "two": oracle_teacher()}
        async with (
            RunningServer(config, teachers) as server,
            AsyncTeacherClient(server.address) as client,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            one = await client.create_conditioning(class_id=0, teacher="one")
            two = await client.create_conditioning(class_id=0, teacher="two")
            assert one.handle == two.handle
            only = await client.create_conditioning(class_id=1, teacher="two")
            estimate = channel.unary_unary(path("EstimateGradient"))
            gradients = []
            for teacher in ("one", "two"):
                request = estimate_request([one.handle])
                request.teacher = teacher
                reply = await estimate(request.SerializeToString())
                gradients.append(pb.EstimateGradientResponse.FromString(reply).gradient.data)
            assert gradients[0] == gradients[1]
            request = estimate_request([only.handle])
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await estimate(request.SerializeToString())  # the default is "one"
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    asyncio.run(scenario())


def test_explicit_and_default_teacher_are_the_first(channel: grpc.Channel) -> None:
    listed = pb.ListTeachersResponse.FromString(send(channel, "ListTeachers", b"")).teachers
    assert [teacher.id for teacher in listed] == ["mixture"]
    assert len(listed[0].schedule.alpha) == 0, "schedules are for GetTeacher"
    named = pb.GetTeacherRequest(teacher="mixture")
    default = pb.GetTeacherResponse.FromString(send(channel, "GetTeacher", b"")).teacher
    by_name = pb.GetTeacherResponse.FromString(send(channel, "GetTeacher", named)).teacher
    assert default.digest == by_name.digest == listed[0].digest
    assert (len(default.schedule.alpha), list(default.event_shape)) == (1000, [2, 4, 4])
    assert [(t.name, list(t.shape)) for t in default.conditioning_schema.tensors] == [
        ("class_label", [])
    ]
    request = estimate_request(create(channel, [0]))
    request.latents.CopyFrom(encode_tensor(latents(2)))
    replies = []
    for teacher in ("", "mixture"):
        request.teacher = teacher
        reply = pb.EstimateGradientResponse.FromString(send(channel, "EstimateGradient", request))
        assert reply.teacher_digest == default.digest
        replies.append(reply.gradient.data)
    assert replies[0] == replies[1]
