"""What a StreamGradients message says beside its request."""

from __future__ import annotations

import math

from carv.v1 import teacher_service_pb2 as pb
from carv_server.validation.checks import Violations

__all__ = ["check_stream_request"]


def check_stream_request(message: pb.StreamGradientsRequest, in_use: bool) -> float | None:
    """Seconds within which the request must be answered; None where it names none.

    Args:
        in_use: whether a request of that id is in flight.

    Raises:
        RequestError: INVALID_FIELD with all violations.
    """
    violations = Violations()
    if in_use:
        violations.add("id", f"{message.id}; a request of that id is in flight on this stream")
    if not message.HasField("estimate"):
        violations.add("action", "set estimate or cancel")
    timeout = None
    if message.HasField("timeout_seconds"):
        timeout = message.timeout_seconds
        if not (math.isfinite(timeout) and timeout > 0.0):
            violations.add("timeout_seconds", f"{timeout}; must be finite and above 0")
    violations.raise_if_any()
    return timeout
