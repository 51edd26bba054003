"""CreateLatents messages to latents worth keeping."""

from __future__ import annotations

from carv.v1 import teacher_service_pb2 as pb
from carv_server.request import RequestLimits
from carv_server.store import StoreConfig
from carv_server.teachers.protocol import TeacherDescription
from carv_server.validation.checks import Float32Array, Violations, check_latents

__all__ = ["check_create_latents"]


def check_create_latents(
    message: pb.CreateLatentsRequest,
    teacher: TeacherDescription,
    limits: RequestLimits,
    store: StoreConfig,
) -> Float32Array:
    """Float32 [R, *event_shape].

    Raises:
        RequestError: INVALID_FIELD with all violations.
    """
    violations = Violations()
    latents = None
    if message.HasField("latents"):
        latents = check_latents(
            message.latents, "latents", teacher.event_shape, limits.max_renders, violations
        )
    else:
        violations.add("latents", "must be set")
    if latents is not None and latents.nbytes > store.max_bytes:
        violations.add(
            "latents",
            f"{latents.nbytes} bytes as float32; at most {store.max_bytes} are kept: "
            "send them with each request",
        )
    violations.raise_if_any()
    assert latents is not None
    return latents
