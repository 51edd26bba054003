"""The caller's trace, handed on: a span of OpenTelemetry's that is current where a call is made
becomes the parent of the server's. No dependency: who has not loaded OpenTelemetry has no span."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["with_trace_context"]

_HEADER = "traceparent"

Metadata = Sequence[tuple[str, str]]


def with_trace_context(metadata: Metadata) -> Metadata:
    """The metadata, with W3C Trace Context of the current span, if there is one and no such header
    yet."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return metadata
    context: Any = trace.get_current_span().get_span_context()
    if not context.is_valid or any(key == _HEADER for key, _ in metadata):
        return metadata
    ids = f"{context.trace_id:032x}-{context.span_id:016x}"
    headers = [*metadata, (_HEADER, f"00-{ids}-{int(context.trace_flags):02x}")]
    state: str = context.trace_state.to_header()
    return [*headers, ("tracestate", state)] if state else headers
