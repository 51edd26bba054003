"""What a gRPC client without our library sends and sees: bytes, and failures with their rich
status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc

from carv.errors import STATUS_METADATA_KEY, FieldViolation, decode_status
from carv.rpc import status_pb2 as rpc
from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from tests.support.oracle import EVENT_SHAPE

__all__ = [
    "Failure",
    "create",
    "create_async",
    "estimate_request",
    "fails",
    "failure_of",
    "health_stub",
    "latents",
    "path",
    "predict_request",
    "send",
    "stream",
    "stream_fails",
]

_SECONDS = 30.0


@dataclass(frozen=True)
class Failure:
    """A failed call. ``reason`` and ``domain`` are empty where there was no rich status."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_delay_seconds: float | None = None

    @property
    def fields(self) -> set[str]:
        return {violation.field for violation in self.violations}


def path(method: str) -> str:
    return f"/carv.v1.TeacherService/{method}"


def send(channel: grpc.Channel, method: str, request: Message | bytes) -> bytes:
    """The reply's bytes; raises grpc.RpcError."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return channel.unary_unary(path(method))(data, timeout=_SECONDS)


def stream(
    channel: grpc.Channel, method: str, request: Message | bytes, seconds: float = _SECONDS
) -> list[bytes]:
    """The replies of a stream; raises grpc.RpcError."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return list(channel.unary_stream(path(method))(data, timeout=seconds))


def stream_fails(channel: grpc.Channel, method: str, request: Message | bytes) -> Failure:
    """How a stream fails; it must."""
    try:
        stream(channel, method, request)
    except grpc.RpcError as error:
        return failure_of(error)
    raise AssertionError(f"{method} succeeded")


def fails(channel: grpc.Channel, method: str, request: Message | bytes) -> Failure:
    """How a request fails; it must."""
    try:
        send(channel, method, request)
    except grpc.RpcError as error:
        return failure_of(error)
    raise AssertionError(f"{method} succeeded")


def failure_of(error: Any) -> Failure:
    """Parse a failed call, synchronous or not."""
    code, message = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key != STATUS_METADATA_KEY:
            continue
        decoded = decode_status(value)
        assert decoded is not None
        number, rich_message, details = decoded
        assert (number, rich_message) == (code.value[0], message)
        packed = [d for d in rpc.Status.FromString(value).details if "ErrorInfo" in d.type_url]
        assert len(packed) == 1
        return Failure(
            code,
            message,
            details.reason,
            rpc.ErrorInfo.FromString(packed[0].value).domain,
            tuple(details.violations),
            details.retry_delay_seconds,
        )
    return Failure(code, message)


def health_stub(channel: Any) -> Any:
    """Of grpc.health.v1; its stub has no types."""
    return health_pb2_grpc.HealthStub(channel)


def latents(renders: int, seed: int = 0) -> np.ndarray:
    """Float32 [R, *EVENT_SHAPE]."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(renders, *EVENT_SHAPE)).astype(np.float32)


def create(channel: grpc.Channel, class_ids: Sequence[int], teacher: str = "") -> list[str]:
    """Handles of class ids."""
    source = conditioning_pb2.ConditioningSource()
    source.classes.class_ids.extend(class_ids)
    request = pb.CreateConditioningRequest(teacher=teacher, source=source)
    reply = send(channel, "CreateConditioning", request)
    made = pb.CreateConditioningResponse.FromString(reply)
    return [conditioning.handle for conditioning in made.conditionings]


async def create_async(channel: grpc.aio.Channel, class_id: int = 0) -> str:
    """Handle of a class id."""
    source = conditioning_pb2.ConditioningSource()
    source.classes.class_ids.append(class_id)
    request = pb.CreateConditioningRequest(source=source)
    reply = await channel.unary_unary(path("CreateConditioning"))(request.SerializeToString())
    return pb.CreateConditioningResponse.FromString(reply).conditionings[0].handle


def estimate_request(
    handles: Sequence[str], renders: int = 2, draws: int = 4, seed: int = 7
) -> pb.EstimateGradientRequest:
    """A good request: one branch with coefficient 1 for each handle, noise coefficient -1."""
    request = pb.EstimateGradientRequest(latents=encode_tensor(latents(renders, seed)), seed=seed)
    for handle in handles:
        branch = request.objective.branches.add(conditionings=[handle])
        branch.coefficient.constant = 1.0
    request.objective.noise_coefficient.constant = -1.0
    request.sampling.draws = draws
    return request


def predict_request(
    handle: str, timesteps: Sequence[int], renders: int = 2, seed: int = 7
) -> pb.PredictNoiseRequest:
    """A good request: the same timesteps for each render, noise indices 0, 1, ..."""
    request = pb.PredictNoiseRequest(
        conditionings=[handle], latents=encode_tensor(latents(renders, seed)), seed=seed
    )
    table = np.tile(np.asarray(timesteps, dtype=np.int64), (renders, 1))
    request.explicit_draws.timesteps.CopyFrom(encode_tensor(table))
    indices = np.tile(np.arange(len(timesteps)), (renders, 1))
    request.explicit_draws.noise_indices.CopyFrom(encode_tensor(indices))
    return request
