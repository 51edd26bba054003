"""Spans on their way to a collector: bounded, and counted whatever becomes of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

__all__ = ["SpanBuffer"]

_log = logging.getLogger(__name__)

_MOST_SPANS = 4096
_BATCH_SPANS = 512
_EXPORT_EVERY_MS = 1000
_COMPLAIN_EVERY_SECONDS = 60.0


class SpanBuffer(SpanProcessor):
    """OpenTelemetry's batching, with a bound in front of it that counts what it turns away.

    Spans end on one thread and leave on another, each of which writes counters of its own.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._admitted = 0
        self._refused = 0
        self._exporter = _Counted(exporter)
        self._batches = BatchSpanProcessor(
            self._exporter,
            max_queue_size=_MOST_SPANS,
            schedule_delay_millis=_EXPORT_EVERY_MS,
            max_export_batch_size=_BATCH_SPANS,
        )

    @property
    def exported(self) -> int:
        return self._exporter.exported

    @property
    def dropped(self) -> int:
        return self._refused + self._exporter.failed

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        exporter = self._exporter
        if self._admitted - exporter.exported - exporter.failed >= _MOST_SPANS:
            self._refused += 1
            return
        self._admitted += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batches.force_flush(timeout_millis)


class _Counted(SpanExporter):
    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._complained = -math.inf
        self.exported = self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
                self._complain()
        return result

    def _complain(self) -> None:
        now = time.monotonic()
        if now - self._complained >= _COMPLAIN_EVERY_SECONDS:
            self._complained = now
            _log.warning("the collector took no spans; %d are lost so far", self.failed)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)
