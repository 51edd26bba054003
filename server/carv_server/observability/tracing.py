"""Traces over a request's whole walk, by OpenTelemetry.

    EstimateGradient                     the request, arrival to end; child of the caller's span
      check                              parse and check, to the moment that all is known good
      plan                               from there to the first submission
      queue                              each job, submission to its first microbatch
      microbatch                         each that held some of its draws; linked to the other
        replica                          requests in it. Within: the forward, at its end

Children are made from readings of clocks once the request is over, after it is answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from carv_server.observability.labels import CODES
from carv_server.observability.notes import CallNotes, CallTrace
from carv_server.observability.span_buffer import SpanBuffer
from carv_server.scheduling.trace import MicrobatchRun, WorkTrace
from carv_server.settings.observability import TracingConfig

__all__ = ["Tracing", "open_tracing"]

_SERVICE = "carv.v1.TeacherService"
_EXPORT_SECONDS = 5.0
_MOST_HEADER_CHARACTERS = 512
_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)

Attributes = dict[str, str | int | float | bool]


def open_tracing(
    config: TracingConfig, version: str, clock: Callable[[], float], instance: str = ""
) -> Tracing:
    """To a collector by OTLP over gRPC, in a thread of its own.

    Args:
        clock: the scheduler's.
        instance: what tells this server from others.
    """
    # It says the same several times a second while the collector is away; we say it now and then.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(
        endpoint=config.endpoint,
        insecure=not config.endpoint.startswith("https://"),
        timeout=_EXPORT_SECONDS,
    )
    return Tracing(exporter, config.sample_ratio, version, clock, instance)


class Tracing:
    """Begins traces, and hands their spans to an exporter from a bounded buffer.

    Args:
        exporter: called in a thread.
        clock: the scheduler's.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        sample_ratio: float,
        version: str,
        clock: Callable[[], float],
        instance: str = "",
    ) -> None:
        self._clock = clock
        self._buffer = SpanBuffer(exporter)
        attributes = {"service.name": "carv", "service.version": version}
        if instance:
            attributes["service.instance.id"] = instance
        resource = Resource(attributes)

        def tracer(sampler: Sampler) -> Tracer:
            provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
            provider.add_span_processor(self._buffer)
            return provider.get_tracer("carv_server", version)

        self._by_ratio = tracer(ParentBased(TraceIdRatioBased(sample_ratio)))
        self._always = tracer(ALWAYS_ON)
        self._headers = TraceContextTextMapPropagator()

    @property
    def exported(self) -> int:
        """Spans that the collector took."""
        return self._buffer.exported

    @property
    def dropped(self) -> int:
        """Spans lost to a full buffer or a failed export."""
        return self._buffer.dropped

    def begin(self, method: str, headers: Mapping[str, str]) -> CallTrace | None:
        """Below the caller's span, if it sent one; sampled as it was, else by the ratio."""
        caller = self._caller(headers)
        return self._trace(self._by_ratio.start_span(method, caller, SpanKind.SERVER))

    def begin_on_stream(
        self, method: str, headers: Mapping[str, str], stream: CallTrace | None
    ) -> CallTrace | None:
        """As ``begin`` in what is sampled, but a trace of its own: a stream has thousands."""
        theirs = get_current_span(self._caller(headers)).get_span_context()
        if theirs.is_valid and not theirs.trace_flags.sampled:
            return None
        start = self._always.start_span if theirs.is_valid else self._by_ratio.start_span
        around = None if stream is None else stream.work.identity
        links = [Link(around)] if isinstance(around, SpanContext) else None
        return self._trace(start(method, Context(), SpanKind.SERVER, links=links))

    def _caller(self, headers: Mapping[str, str]) -> Context:
        known = {k: v for k, v in headers.items() if len(v) <= _MOST_HEADER_CHARACTERS}
        return self._headers.extract(known, Context())

    def _trace(self, span: Span) -> CallTrace | None:
        if not span.is_recording():
            return None
        return _Trace(self._always.start_span, span, self._clock)

    async def close(self) -> None:
        """Hand over what is left, for some seconds at most."""
        closing = asyncio.get_running_loop().run_in_executor(None, self._buffer.shutdown)
        await asyncio.wait({closing}, timeout=_EXPORT_SECONDS)


class _Trace:
    """One request's; spans are made when it has ended."""

    def __init__(self, start: Callable[..., Span], span: Span, clock: Callable[[], float]) -> None:
        self._start = start
        self._span = span
        # Both monotonic clocks against the wall, once: a correction of it bends no span.
        wall = time.time_ns()
        self._arrived = time.perf_counter()
        self._perf_to_wall = wall - int(self._arrived * 1e9)
        self._queue_to_wall = wall - int(clock() * 1e9)
        self._checked: float | None = None
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.work = WorkTrace(context)

    def checked(self) -> None:
        self._checked = time.perf_counter()

    def end(self, call: CallNotes, code: int, reason: str) -> None:
        span = self._span
        span.set_attributes(
            {
                "rpc.system": "grpc",
                "rpc.service": _SERVICE,
                "rpc.method": call.method,
                "rpc.grpc.status_code": code,
                "carv.tenant": call.tenant,
                "carv.teacher": call.teacher,
                "carv.draws": call.draws,
                "carv.evaluations": call.evaluations,
                "carv.request_id": getattr(call, "request_id", ""),
            }
        )
        if reason:
            span.set_attribute("carv.reason", reason)
        if CODES[code] in _FAULTS:
            span.set_status(Status(StatusCode.ERROR, reason))
        ended = self._perf_to_wall + int(time.perf_counter() * 1e9)
        # The answer goes first.
        asyncio.get_running_loop().call_soon(self._finish, ended, code)

    def _finish(self, ended: int, code: int) -> None:
        work, root = self.work, set_span_in_context(self._span)
        arrived = self._wall(self._arrived)
        checked = None if self._checked is None else self._wall(self._checked)
        if checked is not None or code != 0:
            # A request that fails before all is checked has spent its time there.
            self._child(root, "check", arrived, ended if checked is None else checked)
        submitted = [self._queue(wait.submitted) for wait in work.waits]
        if checked is not None and submitted:
            self._child(root, "plan", checked, max(checked, min(submitted)))
        for wait in work.waits:
            until = wait.ended if wait.started is None else wait.started
            attributes: Attributes = {"carv.started": wait.started is not None}
            self._child(root, "queue", self._queue(wait.submitted), self._queue(until), attributes)
        for run in work.runs:
            self._microbatch(root, run)
        if work.left_out:
            self._span.set_attribute("carv.spans_left_out", work.left_out)
        self._span.end(ended)

    def _microbatch(self, root: Context, run: MicrobatchRun) -> None:
        handed, ended = self._queue(run.handed), self._queue(run.ended)
        span = self._start(
            "microbatch",
            root,
            start_time=handed,
            links=[Link(other) for other in run.companions if isinstance(other, SpanContext)],
            attributes={
                "carv.microbatch": run.number,
                "carv.requests": run.requests,
                "carv.evaluations": run.evaluations,
                "carv.own_evaluations": run.own_evaluations,
                "carv.outcome": run.outcome,
            },
        )
        if run.outcome != "ran":
            span.set_status(Status(StatusCode.ERROR, run.outcome))
        inside = set_span_in_context(span)
        begun = max(handed, ended - int(run.device_seconds * 1e9))
        attributes: Attributes = {
            "carv.replica": run.replica,
            "carv.device_seconds": run.device_seconds,
        }
        self._child(inside, "replica", begun if run.outcome == "ran" else handed, ended, attributes)
        span.end(ended)

    def _child(
        self,
        parent: Context,
        name: str,
        begin: int,
        end: int,
        attributes: Attributes | None = None,
    ) -> None:
        self._start(name, parent, start_time=begin, attributes=attributes).end(end)

    def _wall(self, reading: float) -> int:
        return self._perf_to_wall + int(reading * 1e9)

    def _queue(self, reading: float) -> int:
        return self._queue_to_wall + int(reading * 1e9)
