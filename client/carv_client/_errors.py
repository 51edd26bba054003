"""What a call may raise.

    CarvError
    ├── InvalidRequestError       also a ValueError; ``violations`` names every bad field
    │   └── UnsentRequestError    found by the client: arguments that no message can carry
    ├── NotFoundError             unknown teacher, or a handle that could not be re-created
    ├── ResourceExhaustedError    quota or full queue; ``retry_delay`` in seconds
    │   ├── QuotaExceededError    a quota of the tenant's own; ``quotas`` says which
    │   └── MessageTooLargeError  request or reply over the limit; retrying does not help
    ├── DeadlineExceededError     also a TimeoutError
    ├── UnavailableError          also a ConnectionError: no server, or one that is draining
    ├── AuthenticationError       no or bad credentials
    ├── PermissionDeniedError     a teacher that these credentials may not use
    ├── InternalError             the teacher or the server failed; see ``reason``
    └── ClientClosedError         the client was used after close, or after a fork

Any other gRPC status is a plain CarvError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from carv.errors import (
    STATUS_METADATA_KEY,
    ErrorDetails,
    FieldViolation,
    QuotaViolation,
    Reason,
    decode_status,
    read_status,
)
from carv.rpc import status_pb2 as rpc

__all__ = [
    "AuthenticationError",
    "CarvError",
    "ClientClosedError",
    "DeadlineExceededError",
    "FieldViolation",
    "InternalError",
    "InvalidRequestError",
    "MessageTooLargeError",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "QuotaViolation",
    "ResourceExhaustedError",
    "UnavailableError",
    "UnsentRequestError",
    "error_class",
    "from_rpc_error",
    "from_status",
    "invalid",
]


class CarvError(Exception):
    """Base of everything that this library raises about a call.

    Attributes:
        message: what went wrong, for people.
        code: the gRPC status code.
        reason: the server's reason, a value of ``carv.errors.Reason``; empty where the failure
            did not come from a CARV server (nothing listening, a local deadline).
        metadata: further facts by name.
        violations: every field that breaks the contract.
        retry_delay: seconds after which the server expects a retry to help, or None.
        quotas: those of the tenant's that were exceeded.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_delay: float | None = None,
        quotas: Sequence[QuotaViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_delay = retry_delay
        self.quotas = tuple(quotas)

    def __str__(self) -> str:
        lines = [f"{self.message} ({self.code.name}{'/' if self.reason else ''}{self.reason})"]
        broken = [f"{violation.field}: {violation.description}" for violation in self.violations]
        lines += [f"  {line}" for line in broken if line not in self.message]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (
            self.message,
            self.code,
            self.reason,
            self.metadata,
            self.violations,
            self.retry_delay,
            self.quotas,
        )
        return (type(self), arguments)


class InvalidRequestError(CarvError, ValueError):
    """The request breaks the contract; ``violations`` lists all the fields at once."""


class UnsentRequestError(InvalidRequestError):
    """Found before anything was sent: an argument that no message can carry."""


class NotFoundError(CarvError):
    """An unknown teacher, or a conditioning handle that could not be re-created."""


class ResourceExhaustedError(CarvError):
    """Over a quota, or the queue is full; ``retry_delay`` says when to come back."""


class QuotaExceededError(ResourceExhaustedError):
    """Over a quota of the tenant's. Without ``retry_delay`` the request alone is above it."""


class MessageTooLargeError(ResourceExhaustedError):
    """The request, or the reply it asks for, is over the message limit."""


class DeadlineExceededError(CarvError, TimeoutError):
    """The deadline passed, on either side."""


class UnavailableError(CarvError, ConnectionError):
    """Nothing answers at the address, or the server is shutting down."""


class AuthenticationError(CarvError):
    """No credentials, or bad ones."""


class PermissionDeniedError(CarvError):
    """The credentials do not cover this teacher."""


class InternalError(CarvError):
    """The server or its teacher failed. Reason NON_FINITE_RESULT: the teacher gave NaN or
    infinity on finite input; REPLICA_FAILED: its forward raised."""


class ClientClosedError(CarvError):
    """The client was used after ``close``, or in a process forked after it was opened."""

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.CANCELLED,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_delay: float | None = None,
        quotas: Sequence[QuotaViolation] = (),
    ) -> None:
        super().__init__(message, code, reason, metadata, violations, retry_delay, quotas)


_CLASSES: Mapping[tuple[grpc.StatusCode, str | None], type[CarvError]] = {
    (grpc.StatusCode.INVALID_ARGUMENT, None): InvalidRequestError,
    (grpc.StatusCode.NOT_FOUND, None): NotFoundError,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, None): ResourceExhaustedError,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE.value): MessageTooLargeError,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUOTA_EXCEEDED.value): QuotaExceededError,
    (grpc.StatusCode.DEADLINE_EXCEEDED, None): DeadlineExceededError,
    (grpc.StatusCode.UNAVAILABLE, None): UnavailableError,
    (grpc.StatusCode.UNAUTHENTICATED, None): AuthenticationError,
    (grpc.StatusCode.PERMISSION_DENIED, None): PermissionDeniedError,
    (grpc.StatusCode.INTERNAL, None): InternalError,
}


def error_class(code: grpc.StatusCode, reason: str = "") -> type[CarvError]:
    """The exception class of a status: by (code, reason), else by code, else CarvError."""
    return _CLASSES.get((code, reason)) or _CLASSES.get((code, None)) or CarvError


def from_rpc_error(error: grpc.aio.AioRpcError) -> CarvError:
    """Turn a failed call into an exception, with whatever its rich status says."""
    code, message = error.code(), error.details() or ""
    details = ErrorDetails(reason="")
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_METADATA_KEY:
            decoded = decode_status(value if isinstance(value, bytes) else value.encode())
            if decoded is not None and decoded[0] == code.value[0]:
                message, details = decoded[1] or message, decoded[2]
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message:
        # gRPC itself refused: it knows no rich status.
        details = replace(details, reason=Reason.MESSAGE_TOO_LARGE.value)
    return _made(code, message, details)


def from_status(status: rpc.Status) -> CarvError:
    """The exception for a request that a stream's answer says has failed."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    decoded = read_status(status)
    details = ErrorDetails(reason="") if decoded is None else decoded[2]
    return _made(code, status.message, details)


_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _made(code: grpc.StatusCode, message: str, details: ErrorDetails) -> CarvError:
    return error_class(code, details.reason)(
        message or code.name,
        code,
        details.reason,
        details.metadata,
        details.violations,
        details.retry_delay_seconds,
        details.quota_violations,
    )


def invalid(field: str, description: str) -> UnsentRequestError:
    """The error for an argument that cannot be put into a message at all."""
    return UnsentRequestError(
        "the request cannot be sent",
        grpc.StatusCode.INVALID_ARGUMENT,
        Reason.INVALID_FIELD.value,
        violations=(FieldViolation(field, description),),
    )
