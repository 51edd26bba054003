"""One call from its arrival to its end: counted, timed, traced, and logged where it fails."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from carv.errors import STATUS_CODES, Reason
from carv_server.errors import RequestError
from carv_server.observability.access_log import AccessLog
from carv_server.observability.counts import RequestCounts, TeacherCounts
from carv_server.observability.logs import CURRENT_CALL
from carv_server.observability.notes import CallNotes, CallTrace

__all__ = ["REQUEST_ID_KEY", "Metadata", "ObservedCall", "Observers", "Tracer"]

Metadata = Callable[[], Iterable[tuple[str, str | bytes]] | None]
"""A call's metadata as it came; asked for only where something of it is wanted."""

REQUEST_ID_KEY = "x-request-id"
"""In a call's metadata: the caller's name for it; and ``request_id`` in the metadata of
``ErrorInfo``."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_CANCELLED, _DEADLINE_EXCEEDED = 1, 4


class Tracer(Protocol):
    def begin(self, method: str, headers: Mapping[str, str]) -> CallTrace | None:
        """None where it is not to be traced.

        Args:
            headers: ``traceparent`` and ``tracestate``, where the caller sent them.
        """
        ...

    def begin_on_stream(
        self, method: str, headers: Mapping[str, str], stream: CallTrace | None
    ) -> CallTrace | None:
        """A trace of its own, linked to that of the stream.

        Args:
            headers: of the stream.
        """
        ...


@dataclass
class Observers:
    """What calls report to.

    Args:
        new_id: a fresh request id.
    """

    requests: RequestCounts
    access: AccessLog
    new_id: Callable[[], str]
    teachers: dict[str, TeacherCounts] = field(default_factory=dict[str, TeacherCounts])
    tracer: Tracer | None = None


class ObservedCall(CallNotes):
    """Ended once by ``succeeded``, ``failed`` or ``cancelled``; what comes after the first counts
    for nothing. Made in the task that serves the call.

    Args:
        method, tenant: labels.
        stream: the call that this request came by.
    """

    __slots__ = ("_id", "_metadata", "_observers", "_open", "_sent", "_started", "_stream")

    def __init__(
        self,
        observers: Observers,
        method: str,
        tenant: str,
        tenant_id: str,
        metadata: Metadata,
        stream: tuple[ObservedCall, int] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.tenant, self.tenant_id = method, tenant, tenant_id
        self._observers = observers
        self._metadata = metadata
        self._stream = stream
        self._id = ""
        self._open = True
        self._sent = (0, 0, 0.0)
        self._started = time.perf_counter()
        observers.requests.begin(method)
        if observers.tracer is not None:
            headers = self._read("traceparent", "tracestate")
            if stream is None:
                self.trace = observers.tracer.begin(method, headers)
            else:
                within = stream[0].trace
                self.trace = observers.tracer.begin_on_stream(method, headers, within)

    def enter(self) -> None:
        """From here on the task that calls this logs as part of the call."""
        CURRENT_CALL.set(self)

    @property
    def request_id(self) -> str:
        """The caller's ``x-request-id`` if it is 1 to 64 letters, digits and ``._:-``; else made
        here. On a stream: that of the stream, and the request's number."""
        if not self._id:
            if self._stream is not None:
                call, number = self._stream
                self._id = f"{call.request_id}/{number}"
            else:
                given = self._read(REQUEST_ID_KEY).get(REQUEST_ID_KEY, "")
                sane = _REQUEST_ID.fullmatch(given)
                self._id = given if sane else self._observers.new_id()
        return self._id

    @property
    def seconds(self) -> float:
        """Since its arrival."""
        return time.perf_counter() - self._started

    @property
    def trace_id(self) -> str:
        return "" if self.trace is None else self.trace.trace_id

    def on_stream(self, method: str, number: int) -> ObservedCall:
        """A request that came on this stream, by its number there."""
        return ObservedCall(
            self._observers, method, self.tenant, self.tenant_id, self._metadata, (self, number)
        )

    def sent(self) -> None:
        """A reply of a stream has gone out: what it says was spent counts however the call ends."""
        self._sent = (self.draws, self.evaluations, self.compute_seconds)

    def succeeded(self) -> None:
        if not self._open:
            return
        teacher = self._observers.teachers.get(self.teacher)
        if teacher is not None:
            teacher.on_answer(self)
        self._end(0, "")

    def failed(self, error: RequestError) -> None:
        """With an error of the catalogue, which is told the request's id for the client."""
        error.metadata["request_id"] = self.request_id
        if self._open:
            fields = [violation.field for violation in error.violations]
            self._end(STATUS_CODES[error.reason], error.reason.value, fields)

    def cancelled(self, *, late: bool = False) -> None:
        """By the client or, if ``late``, by its deadline."""
        if not self._open:
            return
        if late:
            self._end(_DEADLINE_EXCEEDED, Reason.DEADLINE_EXPIRED.value)
        else:
            self._end(_CANCELLED, Reason.CANCELLED.value)

    def _end(self, code: int, reason: str, fields: Iterable[str] = ()) -> None:
        self._open = False
        observers = self._observers
        seconds = self.seconds
        observers.requests.end(self.method, code, self.tenant, seconds, reason)
        teacher = observers.teachers.get(self.teacher)
        if code and teacher is not None:
            teacher.on_spent(self.tenant, *self._sent)
        if code or observers.access.every_request:
            token = CURRENT_CALL.set(self)  # also where another task ends it
            observers.access.ended(self.method, code, reason, seconds, tuple(fields))
            CURRENT_CALL.reset(token)
        if self.trace is not None:
            self.trace.end(self, code, reason)

    def _read(self, *keys: str) -> dict[str, str]:
        return {
            key: value
            for key, value in self._metadata() or ()
            if key in keys and isinstance(value, str)
        }
