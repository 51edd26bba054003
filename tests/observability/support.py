"""A watched server in this process, what a scrape of it says, and a collector of traces."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client.parser import text_string_to_metric_families

from carv_server.config import ServerConfig
from carv_server.request import RequestLimits
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.settings.observability import MetricsConfig, TracingConfig
from carv_server.teachers.protocol import Teacher

__all__ = [
    "Collector",
    "Samples",
    "attributes",
    "collector",
    "fetch",
    "scrape",
    "settled",
    "watched",
]

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""By name and labels."""


@asynccontextmanager
async def watched(
    teacher: Teacher,
    *,
    scheduler: SchedulerConfig | None = None,
    limits: RequestLimits | None = None,
    tracing: TracingConfig | None = None,
) -> AsyncIterator[tuple[RunningServer, grpc.aio.Channel]]:
    """A server on this event loop with a metrics port, and a raw channel to it."""
    config = ServerConfig(
        address="127.0.0.1:0",
        drain_seconds=10.0,
        warm_up=False,
        scheduler=scheduler or SchedulerConfig(),
        limits=limits or RequestLimits(),
        metrics=MetricsConfig("127.0.0.1:0"),
        tracing=tracing or TracingConfig(),
    )
    async with (
        RunningServer(config, {"mixture": teacher}) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield server, channel


async def fetch(
    address: str, target: str, *, method: str = "GET", accept: str = ""
) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case and body."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {address}"]
        lines += [f"Accept: {accept}"] if accept else []
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = (await asyncio.wait_for(reader.read(), 10)).decode()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in rest)
    return int(first.split()[1]), {k.lower(): v for k, v in headers.items()}, body


async def scrape(server: RunningServer) -> Samples:
    """What Prometheus would read now."""
    status, _, text = await fetch(server.observability.metrics_address, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def settled(server: RunningServer) -> Samples:
    """A scrape once nothing is in flight: a server learns of a cancelled call a little later than
    its client."""
    for _ in range(500):
        samples = await scrape(server)
        name = "carv_requests_in_flight"
        if sum(value for (found, _), value in samples.items() if found == name) == 0:
            return samples
        await asyncio.sleep(0.02)
    raise AssertionError("something is still in flight")


@dataclass
class Collector:
    """Spans that came, by OTLP over gRPC."""

    address: str = ""
    spans: list[trace_pb2.Span] = field(default_factory=list[trace_pb2.Span])
    bytes_seen: bytes = b""
    fails: bool = False
    came: threading.Event = field(default_factory=threading.Event)

    def export(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        if self.fails:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not today")
        self.bytes_seen += data
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(data)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        self.came.set()
        return trace_service_pb2.ExportTraceServiceResponse().SerializeToString()

    def traces(self) -> dict[bytes, list[trace_pb2.Span]]:
        """Spans by trace."""
        found: dict[bytes, list[trace_pb2.Span]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, []).append(span)
        return found

    async def roots(self, count: int) -> list[trace_pb2.Span]:
        """Spans of requests, once there are so many; in order of their start."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            found = [
                span for span in list(self.spans) if span.kind == trace_pb2.Span.SPAN_KIND_SERVER
            ]
            if len(found) >= count:
                assert len(found) == count
                return sorted(found, key=lambda span: span.start_time_unix_nano)
            await asyncio.sleep(0.05)
        raise AssertionError(f"no {count} requests were traced")


@contextmanager
def collector() -> Iterator[Collector]:
    found = Collector()
    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        {"Export": grpc.unary_unary_rpc_method_handler(found.export)},
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield found
    finally:
        server.stop(0).wait()


def attributes(span: trace_pb2.Span) -> dict[str, Any]:
    """By name."""
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
        for each in span.attributes
    }
