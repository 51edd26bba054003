"""The error catalogue: every reason that a CARV server gives, its gRPC code, and the codec
of the rich status that carries it.

A failed call ends with a gRPC code, a message, and in the trailing metadata a serialized
``google.rpc.Status`` holding ``ErrorInfo`` (always), ``BadRequest`` (all field violations
at once), ``QuotaFailure`` (the quotas that were exceeded) and ``RetryInfo`` (wherever retrying
helps). A request that fails on a
StreamGradients is answered with the same status as a message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from carv.rpc import status_pb2 as rpc

__all__ = [
    "DOMAIN",
    "STATUS_CODES",
    "STATUS_METADATA_KEY",
    "ErrorDetails",
    "FieldViolation",
    "QuotaViolation",
    "Reason",
    "decode_status",
    "encode_status",
    "make_status",
    "read_status",
]

DOMAIN = "carv"
STATUS_METADATA_KEY = "grpc-status-details-bin"
_TYPE_URL = "type.googleapis.com/google.rpc."


class Reason(StrEnum):
    """Why a call failed; ``ErrorInfo.reason`` on the wire."""

    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    """The bytes do not parse as the request message."""
    INVALID_FIELD = "INVALID_FIELD"
    """One or more fields are out of bounds; see the field violations."""
    TEACHER_NOT_FOUND = "TEACHER_NOT_FOUND"
    """No teacher of that id is registered."""
    CONDITIONING_NOT_FOUND = "CONDITIONING_NOT_FOUND"
    """A conditioning handle is unknown or has expired: create it again."""
    LATENTS_NOT_FOUND = "LATENTS_NOT_FOUND"
    """A latents handle is unknown or has expired: send the latents again. Conditioning handles
    that are gone too are named in the same error."""
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    """The request, or the reply it asks for, is over the message limit."""
    QUEUE_FULL = "QUEUE_FULL"
    """The queue, or what may be in flight on a stream, is at its bound: retry after the given
    delay."""
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    """The tenant is over a quota of its own; see the quota violations. Retry after the given delay;
    without one the request alone is above the quota."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """No credential, or one that the server does not know."""
    TEACHER_NOT_ALLOWED = "TEACHER_NOT_ALLOWED"
    """The tenant may use some teachers, and this is none of them, whether it exists or not."""
    DEADLINE_EXPIRED = "DEADLINE_EXPIRED"
    """The deadline passed before the work was done; what was left was not computed."""
    CANCELLED = "CANCELLED"
    """A request on a stream that its client has cancelled."""
    DRAINING = "DRAINING"
    """The server is shutting down and takes no new work."""
    NO_REPLICA = "NO_REPLICA"
    """No replica of the teacher has been there for a while: retry after the given delay."""
    NON_FINITE_RESULT = "NON_FINITE_RESULT"
    """The teacher returned NaN or infinity on finite input; the message names the draw."""
    REPLICA_FAILED = "REPLICA_FAILED"
    """The teacher's forward raised, for instance out of device memory, or replicas were lost under
    the request again and again."""
    INTERNAL = "INTERNAL"
    """A defect of the server."""


_CANCELLED = 1
_INVALID_ARGUMENT = 3
_DEADLINE_EXCEEDED = 4
_NOT_FOUND = 5
_PERMISSION_DENIED = 7
_RESOURCE_EXHAUSTED = 8
_INTERNAL = 13
_UNAVAILABLE = 14
_UNAUTHENTICATED = 16

STATUS_CODES: Mapping[Reason, int] = {
    Reason.MALFORMED_MESSAGE: _INVALID_ARGUMENT,
    Reason.INVALID_FIELD: _INVALID_ARGUMENT,
    Reason.TEACHER_NOT_FOUND: _NOT_FOUND,
    Reason.CONDITIONING_NOT_FOUND: _NOT_FOUND,
    Reason.LATENTS_NOT_FOUND: _NOT_FOUND,
    Reason.MESSAGE_TOO_LARGE: _RESOURCE_EXHAUSTED,
    Reason.QUEUE_FULL: _RESOURCE_EXHAUSTED,
    Reason.QUOTA_EXCEEDED: _RESOURCE_EXHAUSTED,
    Reason.UNAUTHENTICATED: _UNAUTHENTICATED,
    Reason.TEACHER_NOT_ALLOWED: _PERMISSION_DENIED,
    Reason.DEADLINE_EXPIRED: _DEADLINE_EXCEEDED,
    Reason.CANCELLED: _CANCELLED,
    Reason.DRAINING: _UNAVAILABLE,
    Reason.NO_REPLICA: _UNAVAILABLE,
    Reason.NON_FINITE_RESULT: _INTERNAL,
    Reason.REPLICA_FAILED: _INTERNAL,
    Reason.INTERNAL: _INTERNAL,
}
"""The gRPC status code of every reason (numbers as in google.rpc.Code)."""


@dataclass(frozen=True)
class FieldViolation:
    """One field that breaks the contract: its path (``objective.branches[1].coefficient``)
    and what is wrong with it, with the limit."""

    field: str
    description: str


@dataclass(frozen=True)
class QuotaViolation:
    """One quota that was exceeded: whose (``tenant:ID``, the caller's own), and by how much."""

    subject: str
    description: str


@dataclass(frozen=True)
class ErrorDetails:
    """What a rich status says beyond code and message."""

    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    violations: Sequence[FieldViolation] = ()
    retry_delay_seconds: float | None = None
    quota_violations: Sequence[QuotaViolation] = ()


def make_status(code: int, message: str, details: ErrorDetails) -> rpc.Status:
    """A ``google.rpc.Status`` as a message."""
    status = rpc.Status(code=code, message=message)
    info = rpc.ErrorInfo(reason=details.reason, domain=DOMAIN, metadata=dict(details.metadata))
    status.details.append(Any(type_url=_TYPE_URL + "ErrorInfo", value=info.SerializeToString()))
    if details.violations:
        bad = rpc.BadRequest(
            field_violations=[
                rpc.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in details.violations
            ]
        )
        status.details.append(Any(type_url=_TYPE_URL + "BadRequest", value=bad.SerializeToString()))
    if details.quota_violations:
        quota = rpc.QuotaFailure(
            violations=[
                rpc.QuotaFailure.Violation(subject=v.subject, description=v.description)
                for v in details.quota_violations
            ]
        )
        status.details.append(
            Any(type_url=_TYPE_URL + "QuotaFailure", value=quota.SerializeToString())
        )
    if details.retry_delay_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(details.retry_delay_seconds * 1e9))
        retry = rpc.RetryInfo(retry_delay=delay)
        status.details.append(
            Any(type_url=_TYPE_URL + "RetryInfo", value=retry.SerializeToString())
        )
    return status


def encode_status(code: int, message: str, details: ErrorDetails) -> bytes:
    """Serialize a ``google.rpc.Status``."""
    return make_status(code, message, details).SerializeToString()


def decode_status(data: bytes) -> tuple[int, str, ErrorDetails] | None:
    """As ``read_status``, from bytes; None also for bytes that are no status."""
    try:
        return read_status(rpc.Status.FromString(data))
    except DecodeError:
        return None


def read_status(status: rpc.Status) -> tuple[int, str, ErrorDetails] | None:
    """(code, message, details) of a ``google.rpc.Status``; None where a detail does not parse.

    An unknown detail is passed over, and the reason is empty where there is no ErrorInfo.
    """
    reason, metadata = "", dict[str, str]()
    violations: list[FieldViolation] = []
    quotas: list[QuotaViolation] = []
    delay: float | None = None
    try:
        for detail in status.details:
            kind = detail.type_url.rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                info = rpc.ErrorInfo.FromString(detail.value)
                reason, metadata = info.reason, dict(info.metadata)
            elif kind == "google.rpc.BadRequest":
                bad = rpc.BadRequest.FromString(detail.value)
                violations += [FieldViolation(v.field, v.description) for v in bad.field_violations]
            elif kind == "google.rpc.QuotaFailure":
                quota = rpc.QuotaFailure.FromString(detail.value)
                quotas += [QuotaViolation(v.subject, v.description) for v in quota.violations]
            elif kind == "google.rpc.RetryInfo":
                retry = rpc.RetryInfo.FromString(detail.value).retry_delay
                delay = retry.seconds + retry.nanos * 1e-9
    except DecodeError:
        return None
    details = ErrorDetails(reason, metadata, tuple(violations), delay, tuple(quotas))
    return status.code, status.message, details
