"""Conditionings whose handles the server has forgotten are created again, quietly."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from carv.errors import Reason
from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import Branch, NotFoundError, TeacherClient
from tests.client.scripted_server import Answer, Refusal, ScriptedServer

LATENTS = np.zeros((2, 3), np.float32)


class ForgetfulServer(ScriptedServer):
    """Keeps handles until told to forget; every creation makes new ones."""

    def __init__(self) -> None:
        super().__init__(self._reply)
        self.handles: dict[str, str] = {}
        self.made = 0
        self.broken = False

    def forget(self) -> None:
        self.handles.clear()

    def _make(self, content: str) -> conditioning_pb2.Conditioning:
        self.made += 1
        handle = f"handle-{self.made}"
        if not self.broken:
            self.handles[handle] = content
        return conditioning_pb2.Conditioning(handle=handle)

    def _reply(self, method: str, request: Any) -> Answer:
        if method == "CreateConditioning":
            source = request.source
            if not all(handle in self.handles for handle in source.blend.handles):
                return Refusal.of(Reason.CONDITIONING_NOT_FOUND)
            contents = [f"prompt {text}" for text in source.prompts.prompts]
            contents += [f"class {number}" for number in source.classes.class_ids]
            if source.WhichOneof("source") == "unconditional":
                contents.append("unconditional")
            if source.blend.handles:
                contents.append("+".join(self.handles[handle] for handle in source.blend.handles))
            return pb.CreateConditioningResponse(
                conditionings=[self._make(content) for content in contents]
            )
        handles = [h for branch in request.objective.branches for h in branch.conditionings]
        if not all(handle in self.handles for handle in handles):
            return Refusal.of(Reason.CONDITIONING_NOT_FOUND)
        # The answer tells, in its digest, what the handles stand for.
        return pb.EstimateGradientResponse(
            gradient=encode_tensor(LATENTS),
            diagnostics=pb.Diagnostics(effective_sample_size=encode_tensor(np.ones(2))),
            teacher_digest=" | ".join(self.handles[handle] for handle in handles),
        )


@pytest.fixture
def server() -> Iterator[ForgetfulServer]:
    server = ForgetfulServer()
    with server:
        yield server


@pytest.fixture
def client(server: ForgetfulServer) -> Iterator[TeacherClient]:
    with TeacherClient(server.address) as client:
        yield client


def test_a_forgotten_handle_is_created_again_and_remembered(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    conditioning = client.create_conditioning("a red torus")
    before = client.estimate_gradient(LATENTS, conditioning).teacher_digest
    assert before == "prompt a red torus | unconditional"
    server.forget()
    assert client.estimate_gradient(LATENTS, conditioning).teacher_digest == before
    assert server.made == 4, "both handles of the request, once each"
    calls = len(server.calls)
    assert client.estimate_gradient(LATENTS, conditioning).teacher_digest == before
    assert len(server.calls) == calls + 1, "the new handles are remembered"
    server.forget()
    assert client.estimate_gradient(LATENTS, conditioning).teacher_digest == before


def test_each_of_a_list_is_created_from_its_own_prompt(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    front, side = client.create_conditioning(["front", "side"])
    assert server.count("CreateConditioning") == 1
    server.forget()
    estimate = client.estimate_gradient(LATENTS, [side, front], guidance_scale=1.0)
    assert estimate.teacher_digest == "prompt side | prompt front"


def test_a_blend_is_created_again_with_its_parts(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    a, b = client.create_conditioning(class_id=[1, 2])
    inner = client.create_conditioning(blend=[(a, 0.5), (b, 0.5)])
    outer = client.create_conditioning(blend=[(inner, 0.25), (a, 0.75)])
    assert outer.label == "0.25 · 0.5 · class 1 + 0.5 · class 2 + 0.75 · class 1"
    server.forget()
    estimate = client.estimate_gradient(LATENTS, outer, guidance_scale=1.0)
    assert estimate.teacher_digest == "class 1+class 2+class 1"
    server.forget()
    client.create_conditioning(blend=[(a, 0.5), (b, 0.5)])  # its parts are gone here too


def test_a_conditioning_outlives_its_client_and_its_process(server: ForgetfulServer) -> None:
    with TeacherClient(server.address) as first:
        conditioning = first.create_conditioning("a red torus")
    server.forget()
    again = pickle.loads(pickle.dumps(conditioning))
    assert again == conditioning
    assert hash(again) == hash(conditioning)
    with TeacherClient(server.address) as second:
        estimate = second.estimate_gradient(LATENTS, branches=[Branch(again)])
    assert estimate.teacher_digest == "prompt a red torus"


def test_a_server_that_forgets_at_once_ends_with_the_error(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    conditioning = client.create_conditioning("a red torus")
    server.forget()
    server.broken = True
    with pytest.raises(NotFoundError) as caught:
        client.estimate_gradient(LATENTS, conditioning, guidance_scale=1.0)
    assert caught.value.reason == "CONDITIONING_NOT_FOUND"
    assert server.count("EstimateGradient") == 2, "tried again once, and no more"


def test_the_unconditional_branch_is_made_once_and_only_where_it_counts(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    conditioning = client.create_conditioning(class_id=3)
    client.estimate_gradient(LATENTS, conditioning, guidance_scale=1.0)
    client.estimate_gradient(LATENTS, conditioning, guidance_scale=0.0, guidance="text_anchored")
    assert server.made == 1
    for _ in range(3):
        client.estimate_gradient(LATENTS, conditioning)
    assert server.made == 2
    for _ in range(2):
        client.estimate_gradient(LATENTS, conditioning, negative_prompt="blurry")
    assert server.made == 3
    estimate = client.estimate_gradient(LATENTS, conditioning, negative_prompt="blurry")
    assert estimate.teacher_digest == "class 3 | prompt blurry"
    alone = client.estimate_gradient(LATENTS)
    assert alone.teacher_digest == "unconditional"
