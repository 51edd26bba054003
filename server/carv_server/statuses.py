"""Failures as google.rpc.Status: at the end of a call, or as an answer on a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from carv.errors import (
    STATUS_CODES,
    STATUS_METADATA_KEY,
    ErrorDetails,
    FieldViolation,
    Reason,
    make_status,
)
from carv.rpc import status_pb2 as rpc
from carv_server.errors import RequestError

__all__ = ["Context", "abort", "as_request_error", "released", "status_of"]

_log = logging.getLogger(__name__)

_STATUS_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
# A client by default refuses trailing metadata above 8 KiB; the details are sent as base64.
_MAX_STATUS_MESSAGE_BYTES = 1024
_MAX_STATUS_VIOLATION_BYTES = 3072

_Given = TypeVar("_Given")
_Answer = TypeVar("_Answer")
Context = grpc.aio.ServicerContext[bytes, bytes]


def as_request_error(error: Exception, what: str) -> RequestError:
    """A RequestError as it is. Any other is a defect by which ``what`` failed: it goes to the
    log in full, and to the client as INTERNAL."""
    if isinstance(error, RequestError):
        return error
    _log.error("%s failed", what, exc_info=error)
    return RequestError(Reason.INTERNAL, "a defect of the server; its log has the trace")


def status_of(error: RequestError) -> rpc.Status:
    """The rich status, cut to what a call's trailing metadata may hold. Ends the error's traceback,
    whose frames hold the request and, in a cycle, the error."""
    error.__traceback__ = None
    details = ErrorDetails(
        error.reason.value,
        error.metadata,
        _first(error.violations),
        error.retry_delay_seconds,
        error.quota_violations,
    )
    return make_status(STATUS_CODES[error.reason], _shortened(error.message), details)


async def abort(context: Context, error: RequestError) -> None:
    """End a call with the error's status; raises what gRPC wants to see raised."""
    status = status_of(error)
    try:
        await context.abort(
            _STATUS_BY_NUMBER[status.code],
            status.message,
            trailing_metadata=((STATUS_METADATA_KEY, status.SerializeToString()),),
        )
    except grpc.aio.InternalError:
        # The call is over, mostly by its deadline a moment ago: nobody is there to be told, and
        # gRPC would log it as an error of the handler.
        raise asyncio.CancelledError from None


def released(call: Callable[[_Given, Context], Awaitable[_Answer]]) -> Callable[..., Any]:
    """A handler whose request is freed when it ends, however it does. gRPC keeps the error of an
    aborted call in a cycle with it, and the frames of that error's traceback would keep the
    request, which may be tens of megabytes, until the garbage collector comes by."""

    async def handler(given: _Given, context: Context) -> _Answer:
        answering = call(given, context)
        del given
        try:
            return await answering
        except grpc.aio.AbortError as error:
            error.__context__ = None
            raise error.with_traceback(None) from None

    return handler


def _shortened(message: str) -> str:
    """At most so many bytes once gRPC has percent-encoded it."""
    used = 0
    for i, character in enumerate(message):
        used += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if used > _MAX_STATUS_MESSAGE_BYTES:
            return f"{message[:i]} ..."
    return message


def _first(violations: Sequence[FieldViolation]) -> Sequence[FieldViolation]:
    """As many violations as fit; the last one says how many do not."""
    kept: list[FieldViolation] = []
    used = 0
    for i, violation in enumerate(violations):
        description = _shortened(violation.description)
        used += len(violation.field.encode()) + len(description.encode())
        if used > _MAX_STATUS_VIOLATION_BYTES:
            left = len(violations) - i
            kept.append(FieldViolation(violation.field, f"this and more: {left} are not listed"))
            break
        kept.append(FieldViolation(violation.field, description))
    return kept
