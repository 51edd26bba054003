"""A server that answers what is submitted as a test tells it to, and a client of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2, teacher_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import ClientConfig, Conditioning, TeacherClient
from tests.client.scripted_server import Answer, ScriptedServer

__all__ = [
    "LATENTS",
    "STREAM",
    "C",
    "Held",
    "Streaming",
    "answer",
    "connect",
    "response",
    "until",
]

C = Conditioning(handle="c", teacher="", label="c")
LATENTS = np.zeros((2, 3), np.float32)
STREAM = "StreamGradients"


def response(seed: int = 0) -> pb.EstimateGradientResponse:
    return pb.EstimateGradientResponse(
        gradient=encode_tensor(LATENTS),
        diagnostics=pb.Diagnostics(effective_sample_size=encode_tensor(np.ones(2))),
        seed=seed,
    )


def answer(message: pb.StreamGradientsRequest) -> pb.StreamGradientsResponse:
    return pb.StreamGradientsResponse(id=message.id, estimate=response(message.estimate.seed))


class Streaming(ScriptedServer):
    """Answers every request on a stream by ``on_stream``, and lives like a server otherwise."""

    def __init__(
        self,
        on_stream: Callable[[pb.StreamGradientsRequest], Answer | Sequence[Answer]] = answer,
        limit: int = 0,
    ) -> None:
        super().__init__(self._reply)
        self._on_stream = on_stream
        self._limits = teacher_pb2.Limits(max_stream_requests=limit)

    def _reply(self, method: str, request: Any) -> Answer | Sequence[Answer]:
        if method == STREAM:
            return self._on_stream(request)
        if method == "GetTeacher":
            return pb.GetTeacherResponse(teacher=teacher_pb2.Teacher(limits=self._limits))
        if method == "CreateConditioning":
            made = conditioning_pb2.Conditioning(handle="u")
            return pb.CreateConditioningResponse(conditionings=[made])
        return response(request.seed)

    @property
    def asked(self) -> list[pb.StreamGradientsRequest]:
        """Requests on streams, without cancellations."""
        requests = [call.request for call in self.calls if call.method == STREAM]
        return [request for request in requests if request.HasField("estimate")]

    @property
    def cancelled_ids(self) -> list[int]:
        requests = [call.request for call in self.calls if call.method == STREAM]
        return [request.id for request in requests if request.HasField("cancel")]


class Held:
    """Answers held back until they are let go of, each by the seed of its request."""

    def __init__(self) -> None:
        self._held: list[pb.StreamGradientsResponse] = []
        self._lock = threading.Lock()

    def __call__(self, message: pb.StreamGradientsRequest) -> Sequence[Answer]:
        with self._lock:
            if message.HasField("cancel"):
                return []
            if message.estimate.seed == 999:  # lets go of the rest, itself first, last in first out
                held, self._held = self._held, []
                return [answer(message), *reversed(held)]
            self._held.append(answer(message))
            return []


def connect(server: ScriptedServer, **config: Any) -> TeacherClient:
    settings: dict[str, Any] = {"retry_initial_seconds": 0.01, "retry_max_seconds": 0.05}
    config = {**settings, **config}
    return TeacherClient(ClientConfig(address=server.address, **config), jitter=lambda: 0.5)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)
