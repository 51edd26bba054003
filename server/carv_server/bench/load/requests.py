"""Requests to ``carv serve`` as bytes, and the handles that they need."""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt

from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.bench.load.wire import Target, call_once

__all__ = [
    "create_handle",
    "estimate_payload",
    "health_target",
    "predict_payload",
    "service_target",
    "stream_payload",
    "stream_target",
]

_SECONDS = 60.0

Float32Array = npt.NDArray[np.float32]


def service_target(address: str, method: str) -> Target:
    """A method of the teacher service."""
    return Target("grpc", address, f"/carv.v1.TeacherService/{method}")


def stream_target(address: str) -> Target:
    """Gradients on a call that stays open; its payloads are ``stream_payload``."""
    return Target("grpc-stream", address, "/carv.v1.TeacherService/StreamGradients")


def health_target(address: str) -> Target:
    """The health check; its request may be empty."""
    return Target("grpc", address, "/grpc.health.v1.Health/Check")


def create_handle(address: str, prompt: str | None, teacher: str = "") -> str:
    """Handle of a prompt, or of the unconditional input.

    Raises:
        CallFailed: the server refuses.
    """
    source = conditioning_pb2.ConditioningSource()
    if prompt is None:
        source.unconditional.SetInParent()
    else:
        source.prompts.prompts.append(prompt)
    request = pb.CreateConditioningRequest(teacher=teacher, source=source)
    target = service_target(address, "CreateConditioning")
    reply = asyncio.run(call_once(target, request.SerializeToString(), _SECONDS))
    return pb.CreateConditioningResponse.FromString(reply).conditionings[0].handle


def estimate_payload(
    latents: Float32Array,
    handles: list[str],
    coefficients: list[float],
    draws: int,
    teacher: str = "",
) -> bytes:
    """EstimateGradient at latents [R, *event_shape] with default sampling, noise coefficient -1,
    and no seed, so that every request has draws of its own."""
    request = pb.EstimateGradientRequest(teacher=teacher, latents=encode_tensor(latents))
    for handle, coefficient in zip(handles, coefficients, strict=True):
        branch = request.objective.branches.add(conditionings=[handle])
        branch.coefficient.constant = coefficient
    request.objective.noise_coefficient.constant = -1.0
    request.sampling.draws = draws
    return request.SerializeToString()


def predict_payload(z_t: Float32Array, handle: str, timestep: int) -> bytes:
    """PredictNoise at one z_t, [*event_shape]."""
    request = pb.PredictNoiseRequest(
        conditionings=[handle], noisy_latents=encode_tensor(z_t[np.newaxis])
    )
    request.explicit_draws.timesteps.CopyFrom(encode_tensor(np.array([[timestep]], np.int64)))
    return request.SerializeToString()


def stream_payload(estimate: bytes) -> bytes:
    """An EstimateGradient request as one of a stream."""
    request = pb.StreamGradientsRequest(id=1)
    request.estimate.ParseFromString(estimate)
    return request.SerializeToString()
