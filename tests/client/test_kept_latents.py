"""Latents that the server keeps: named by a handle, and sent again when they are gone."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from carv.errors import STATUS_CODES, ErrorDetails, Reason, make_status
from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import conditioning_pb2, latents_pb2, sampling_pb2, teacher_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import (
    AsyncTeacherClient,
    Branch,
    InvalidRequestError,
    KeptLatents,
    NotFoundError,
    TeacherClient,
)
from tests.client.scripted_server import Answer, Refusal, ScriptedServer

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class ForgetfulServer(ScriptedServer):
    """Keeps latents and conditionings until told to forget; every creation makes new handles."""

    def __init__(self) -> None:
        super().__init__(self._reply)
        self.kept: dict[str, Any] = {}
        self.made = 0
        self.broken = False
        self._lock = threading.Lock()

    def forget(self) -> None:
        self.kept.clear()

    def _keep(self, what: Any) -> str:
        with self._lock:
            self.made += 1
            handle = f"handle-{self.made}"
            if not self.broken:
                self.kept[handle] = what
            return handle

    def _reply(self, method: str, request: Any) -> Answer:
        match method:
            case "CreateLatents":
                handle = self._keep(request.latents)
                return pb.CreateLatentsResponse(latents=latents_pb2.Latents(handle=handle))
            case "CreateConditioning":
                made = conditioning_pb2.Conditioning(handle=self._keep("conditioning"))
                return pb.CreateConditioningResponse(conditionings=[made])
            case "GetTeacher":
                return pb.GetTeacherResponse(teacher=teacher_pb2.Teacher())
            case "StreamGradients":
                reason = self._gone(request.estimate)
                reply = pb.StreamGradientsResponse(id=request.id)
                if reason is None:
                    reply.estimate.CopyFrom(self._estimate(request.estimate))
                else:
                    details = ErrorDetails(reason.value)
                    reply.error.CopyFrom(make_status(STATUS_CODES[reason], "gone", details))
                return reply
            case _:
                reason = self._gone(request)
                if reason is not None:
                    return Refusal.of(reason)
                if method == "EstimateGradient":
                    return self._estimate(request)
                if method == "PredictNoise":
                    return pb.PredictNoiseResponse(noise_prediction=encode_tensor(X[:, None]))
                if method == "ProfileTeacher":
                    return pb.ProfileTeacherResponse(progress=1.0, profile=pb.Profile())
                return pb.RefineGradientResponse(
                    gradient=encode_tensor(X),
                    relative_standard_error=encode_tensor(np.ones(2)),
                    draws=encode_tensor(np.ones(2, np.int64)),
                    sampling=sampling_pb2.Sampling(),
                    final=True,
                )

    def _gone(self, request: Any) -> Reason | None:
        latents = [request.latents_handle] if request.latents_handle else []
        conditionings: list[str] = []
        if isinstance(request, pb.PredictNoiseRequest):
            conditionings += request.conditionings
        else:
            conditionings += [h for b in request.objective.branches for h in b.conditionings]
            reference = request.objective.reference_latents_handle
            latents += [reference] if reference else []
        if any(handle not in self.kept for handle in latents):
            return Reason.LATENTS_NOT_FOUND
        if any(handle not in self.kept for handle in conditionings):
            return Reason.CONDITIONING_NOT_FOUND
        return None

    def _estimate(self, request: pb.EstimateGradientRequest) -> pb.EstimateGradientResponse:
        """The latents themselves come back as the gradient."""
        handle = request.latents_handle
        return pb.EstimateGradientResponse(
            gradient=self.kept[handle] if handle else request.latents,
            diagnostics=pb.Diagnostics(effective_sample_size=encode_tensor(np.ones(2))),
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


def ask(client: TeacherClient, method: str, kept: KeptLatents) -> Any:
    """One call with kept latents."""
    match method:
        case "EstimateGradient":
            return client.estimate_gradient(kept)
        case "StreamGradients":
            return client.submit(kept).result(5)
        case "PredictNoise":
            return client.predict_noise(kept, timesteps=[5])
        case "RefineGradient":
            return list(client.refine_gradient(kept, max_draws=4))
        case _:
            return client.profile_teacher(kept)


METHODS = [
    "EstimateGradient",
    "StreamGradients",
    "PredictNoise",
    "RefineGradient",
    "ProfileTeacher",
]


@pytest.mark.parametrize("method", METHODS)
def test_kept_latents_go_by_their_handle_and_are_kept_again_when_gone(
    server: ForgetfulServer, client: TeacherClient, method: str
) -> None:
    kept = client.keep_latents(X)
    assert kept.shape == (2, 3) and len(pickle.dumps(kept)) < 1000
    ask(client, method, kept)
    server.forget()  # conditionings too
    ask(client, method, kept)
    ask(client, method, kept)
    assert server.count("CreateLatents") == 2, "once more, and the new handle is remembered"
    sent = [call.request for call in server.calls if call.method == method]
    requests = [r.estimate if method == "StreamGradients" else r for r in sent]
    assert len(requests) == 4, "one was refused"
    assert not any(request.HasField("latents") for request in requests)
    assert requests[0].latents_handle == requests[1].latents_handle == kept.handle
    assert requests[2].latents_handle == requests[3].latents_handle != kept.handle


def test_what_is_sent_again_is_what_was_sent(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    values = X.copy()
    kept = client.keep_latents(values, wire_dtype="float16")
    values[:] = 0.0
    server.forget()
    np.testing.assert_array_equal(client.estimate_gradient(kept).gradient, X)
    again = [call.request for call in server.calls if call.method == "CreateLatents"]
    assert again[0] == again[1]
    assert decode_tensor(again[1].latents).dtype == np.float16


def test_conditionings_alone_are_made_again_without_the_latents(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    kept = client.keep_latents(X)
    client.estimate_gradient(kept)
    for handle in [h for h, what in server.kept.items() if what == "conditioning"]:
        del server.kept[handle]
    client.estimate_gradient(kept)
    assert (server.count("CreateLatents"), server.count("CreateConditioning")) == (1, 2)


def test_reference_latents_may_be_kept(server: ForgetfulServer, client: TeacherClient) -> None:
    reference = client.keep_latents(X + 1)
    conditioning = client.create_conditioning("a")
    branches = [Branch(conditioning), Branch(conditioning, -1.0, use_reference_latents=True)]
    server.forget()
    client.estimate_gradient(X, branches=branches, reference_latents=reference)
    request = server.calls[-1].request
    assert request.HasField("latents")
    assert server.kept[request.objective.reference_latents_handle] == encode_tensor(X + 1)


def test_many_in_flight_have_them_made_again_once(server: ForgetfulServer) -> None:
    async def main() -> None:
        async with AsyncTeacherClient(server.address) as client:
            kept = await client.keep_latents(X)
            await client.estimate_gradient(kept)
            server.forget()
            coming = [await client.submit(kept) for _ in range(16)]
            for estimate in await asyncio.gather(*coming):
                np.testing.assert_array_equal(estimate.gradient, X)

    asyncio.run(main())
    assert (server.count("CreateLatents"), server.count("CreateConditioning")) == (2, 2)


def test_a_server_that_forgets_at_once_ends_with_the_error(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    kept = client.keep_latents(X)
    client.estimate_gradient(kept)
    server.forget()
    server.broken = True
    for make in (lambda: client.estimate_gradient(kept), lambda: client.submit(kept).result(5)):
        with pytest.raises(NotFoundError) as caught:
            make()
        assert caught.value.reason == "LATENTS_NOT_FOUND"
    assert server.count("EstimateGradient") == 3 and server.count("StreamGradients") == 2


def test_latents_of_one_teacher_are_not_asked_of_another(
    server: ForgetfulServer, client: TeacherClient
) -> None:
    kept = client.keep_latents(X, teacher="one")
    with pytest.raises(InvalidRequestError, match="disagree: one, two"):
        client.estimate_gradient(kept, teacher="two")
    client.estimate_gradient(kept)
    assert server.calls[-1].request.teacher == "one", "the latents' own teacher"


def test_kept_latents_are_a_value(client: TeacherClient) -> None:
    kept = client.keep_latents(X)
    again = pickle.loads(pickle.dumps(kept))
    assert again == kept and hash(again) == hash(kept)
    assert "tensor" not in repr(kept)
    with pytest.raises(InvalidRequestError, match="latents"):
        client.keep_latents(np.array([object()]))
