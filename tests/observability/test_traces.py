"""One trace a request, over its whole walk, into a collector on loopback; nothing of what was sent
is in it.

Breaks it (tried): a request's span without the caller's context; children without the request's;
companions of other tenants; a buffer ten times its bound.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise

import grpc
import numpy as np
import pytest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import TeacherClient
from carv_client._trace_context import with_trace_context
from carv_server.observability.notes import CallNotes
from carv_server.observability.tracing import Tracing
from carv_server.scheduling.terms import Terms
from carv_server.scheduling.trace import Part, WorkTrace, note_run
from carv_server.serve import RunningServer
from carv_server.settings.observability import TracingConfig, check_installed
from tests.observability.support import Collector, attributes, collector, settled, watched
from tests.server.streamed import Stream
from tests.server.teachers import GatedTeacher, oracle_teacher, waiting
from tests.server.wire import create_async, estimate_request, latents, path

CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def traceparent(*, sampled: bool = True) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{CALLER_TRACE}-{CALLER_SPAN}-{int(sampled):02d}"),)


def children(spans: list[trace_pb2.Span], parent: trace_pb2.Span) -> dict[str, trace_pb2.Span]:
    """By name; each once."""
    found = [span for span in spans if span.parent_span_id == parent.span_id]
    names = [span.name for span in found]
    assert len(names) == len(set(names)), names
    return dict(zip(names, found, strict=True))


def test_the_whole_walk_is_one_trace_below_the_callers_span() -> None:
    async def main(seen: Collector) -> None:
        tracing = TracingConfig(seen.address, 0.0)  # the caller's choice goes first
        async with watched(oracle_teacher(), tracing=tracing) as (_, channel):
            handle = await create_async(channel)
            request = estimate_request([handle], draws=4)
            call = channel.unary_unary(path("EstimateGradient"))
            await call(request.SerializeToString(), metadata=traceparent())
            (root,) = await seen.roots(1)
        assert root.trace_id.hex() == CALLER_TRACE and root.parent_span_id.hex() == CALLER_SPAN
        assert root.name == "EstimateGradient"
        assert {span.trace_id for span in seen.spans} == {root.trace_id}
        said = attributes(root)
        assert said["rpc.method"] == "EstimateGradient"
        assert said["carv.teacher"] == "mixture" and said["carv.tenant"] == "none"
        assert int(said["carv.evaluations"]) == int(said["carv.draws"]) == 8
        parts = children(seen.spans, root)
        assert set(parts) == {"check", "plan", "queue", "microbatch"}
        inside = children(seen.spans, parts["microbatch"])
        assert set(inside) == {"replica"}
        # The parts follow each other, and none is outside of what holds it.
        order = [parts[name] for name in ("check", "plan", "queue", "microbatch")]
        for one, other in pairwise(order):
            assert one.start_time_unix_nano <= one.end_time_unix_nano
            assert one.end_time_unix_nano <= other.start_time_unix_nano + 50_000  # two clocks
        for span, holder in [(inside["replica"], order[3]), *((part, root) for part in order)]:
            assert span.start_time_unix_nano >= holder.start_time_unix_nano - 50_000
            assert span.end_time_unix_nano <= holder.end_time_unix_nano + 50_000

    with collector() as seen:
        asyncio.run(main(seen))


def test_one_trace_a_request_whatever_becomes_of_it() -> None:
    async def main(seen: Collector) -> None:
        teacher = GatedTeacher()
        async with watched(teacher, tracing=TracingConfig(seen.address)) as (server, channel):
            handle = await create_async(channel)
            ask = channel.unary_unary(path("EstimateGradient"))
            invalid = estimate_request([handle], draws=0).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(invalid)
            first = ask(estimate_request([handle], seed=1).SerializeToString())
            await asyncio.to_thread(teacher.entered.wait, 10)
            gone = ask(estimate_request([handle], seed=2).SerializeToString())
            await waiting(server, 1)
            gone.cancel()
            await waiting(server, 0)
            stream = Stream(channel)
            await stream.ask(1, estimate_request([handle], seed=3))
            await stream.ask(2, estimate_request([handle], seed=4))
            await waiting(server, 2)
            teacher.gate.set()
            await first
            await stream.answers(2)
            await stream.half_close()
            await stream.ended()
            await settled(server)
            roots = await seen.roots(7)
        names = sorted(root.name for root in roots)
        inner = "StreamGradients/request"
        assert names == sorted(
            ["CreateConditioning", *["EstimateGradient"] * 3, "StreamGradients", inner, inner]
        )
        assert len({root.trace_id for root in roots}) == 7 == len(seen.traces())
        for spans in seen.traces().values():
            ids = {span.span_id for span in spans}
            assert sum(span.parent_span_id not in ids for span in spans) == 1, "one tree"
        by_code = {int(attributes(root)["rpc.grpc.status_code"]) for root in roots}
        assert by_code == {0, 1, 3}
        failed = next(r for r in roots if int(attributes(r)["rpc.grpc.status_code"]) == 3)
        assert attributes(failed)["carv.reason"] == "INVALID_FIELD"
        assert failed.status.code == trace_pb2.Status.STATUS_CODE_UNSET, "the client's fault"
        left = next(r for r in roots if int(attributes(r)["rpc.grpc.status_code"]) == 1)
        queue = children(seen.spans, left)["queue"]
        assert not attributes(queue)["carv.started"]
        # Each request on the stream points to the stream, and the two, which shared a microbatch,
        # to each other.
        (call,) = [root for root in roots if root.name == "StreamGradients"]
        two = [root for root in roots if root.name == inner]
        for root in two:
            assert [link.span_id for link in root.links] == [call.span_id]
        for one, other in (two, two[::-1]):
            microbatch = children(seen.spans, one)["microbatch"]
            assert [link.trace_id for link in microbatch.links] == [other.trace_id]
            assert int(attributes(microbatch)["carv.requests"]) == 2

    with collector() as seen:
        asyncio.run(main(seen))


def test_a_caller_who_samples_nothing_and_bad_headers() -> None:
    async def main(seen: Collector) -> None:
        async with watched(oracle_teacher(), tracing=TracingConfig(seen.address)) as (_, channel):
            ask = channel.unary_unary(path("ListTeachers"))
            await ask(b"", metadata=traceparent(sampled=False))
            for header in ("00-zz-00-01", "x" * 4000, ""):
                await ask(b"", metadata=(("traceparent", header),))
            roots = await seen.roots(3)
        assert all(not root.parent_span_id for root in roots)

    with collector() as seen:
        asyncio.run(main(seen))


@pytest.mark.parametrize("sampled", [True, False])
def test_requests_on_a_stream_are_sampled_as_its_caller_is(sampled: bool) -> None:
    async def main(seen: Collector) -> None:
        tracing = TracingConfig(seen.address, 0.0 if sampled else 1.0)
        async with watched(oracle_teacher(), tracing=tracing) as (_, channel):
            handle = await create_async(channel)
            stream = Stream(channel, metadata=traceparent(sampled=sampled))
            for number in range(2):
                await stream.ask(number, estimate_request([handle]))
            await stream.answers(2)
            await stream.half_close()
            await stream.ended()
            roots = await seen.roots(3 if sampled else 1)
        if sampled:
            (call,) = [root for root in roots if root.name == "StreamGradients"]
            assert call.trace_id.hex() == CALLER_TRACE
            assert sum(root.trace_id == call.trace_id for root in roots) == 1
        else:
            assert [root.name for root in roots] == ["CreateConditioning"]

    with collector() as seen:
        asyncio.run(main(seen))


def test_our_client_hands_its_current_span_on() -> None:
    """The blocking one, whose calls run in another thread. Without a span it sends none."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")

    def work(client: TeacherClient) -> SpanContext:
        client.list_teachers()
        with tracer.start_as_current_span("step") as span:
            client.list_teachers()
        return span.get_span_context()

    async def main(seen: Collector) -> None:
        tracing = TracingConfig(seen.address)
        async with watched(oracle_teacher(), tracing=tracing) as (server, _):
            with TeacherClient(server.address) as client:
                theirs = await asyncio.to_thread(work, client)
            first, second = await seen.roots(2)
        assert not first.parent_span_id
        assert int.from_bytes(second.parent_span_id) == theirs.span_id
        assert int.from_bytes(second.trace_id) == theirs.trace_id

    with collector() as seen:
        asyncio.run(main(seen))


def test_a_client_without_opentelemetry_sends_what_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [("traceparent", "mine")]
    assert with_trace_context(given) is given
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert with_trace_context(()) == ()


def test_nothing_of_what_was_sent_is_in_a_trace() -> None:
    secret = "ultramarine-albatross"

    async def main(seen: Collector) -> None:
        async with watched(oracle_teacher(), tracing=TracingConfig(seen.address)) as (_, channel):
            handle = await create_async(channel)
            request = estimate_request([handle])
            request.sampling.history = secret
            request.latents.data = np.full_like(latents(2), 0.12345679).tobytes()
            headers = (("authorization", f"Bearer {secret}"), ("x-secret", secret))
            ask = channel.unary_unary(path("EstimateGradient"))
            await ask(request.SerializeToString(), metadata=headers)
            source = conditioning_pb2.ConditioningSource()
            source.prompts.prompts.append(secret)
            create = pb.CreateConditioningRequest(source=source).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(path("CreateConditioning"))(create, metadata=headers)
            await seen.roots(3)
        assert secret.encode() not in seen.bytes_seen
        assert np.float32(0.12345679).tobytes() * 2 not in seen.bytes_seen

    with collector() as seen:
        asyncio.run(main(seen))


async def some(server: RunningServer, counter: str) -> float:
    """A counter once it is above zero: spans are counted after they have come."""
    for _ in range(500):
        if (value := (await settled(server))[counter, frozenset()]) > 0:
            return value
        await asyncio.sleep(0.02)
    return 0.0


def test_lost_spans_are_counted_and_fail_no_request() -> None:
    async def main(seen: Collector) -> None:
        seen.fails = True
        async with watched(oracle_teacher(), tracing=TracingConfig(seen.address)) as (
            server,
            channel,
        ):
            await channel.unary_unary(path("ListTeachers"))(b"")
            assert await some(server, "carv_trace_spans_dropped_total") == 1
            seen.fails = False
            await channel.unary_unary(path("ListTeachers"))(b"")
            await seen.roots(1)
            assert await some(server, "carv_trace_spans_exported_total") == 1

    with collector() as seen:
        asyncio.run(main(seen))


def test_the_buffer_is_bounded_and_what_does_not_fit_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("carv_server.observability.span_buffer._MOST_SPANS", 8)
    monkeypatch.setattr("carv_server.observability.span_buffer._BATCH_SPANS", 8)
    monkeypatch.setattr("carv_server.observability.span_buffer._EXPORT_EVERY_MS", 60_000)

    async def main() -> None:
        exporter = InMemorySpanExporter()
        tracing = Tracing(exporter, 1.0, "0", lambda: 0.0)
        exporting = asyncio.Event()
        for _ in range(64):
            trace = tracing.begin("GetTeacher", {})
            assert trace is not None
            trace.end(CallNotes(), 0, "")
        await asyncio.sleep(0)
        exporting.set()
        await tracing.close()
        assert tracing.dropped > 0
        assert tracing.exported + tracing.dropped == 64
        assert len(exporter.get_finished_spans()) == tracing.exported

    asyncio.run(main())


def test_companions_are_of_the_same_tenant_only() -> None:
    traces = {name: WorkTrace(name) for name in ("a1", "a2", "b1")}
    terms = [Terms(tenant=name[0], trace=trace) for name, trace in traces.items()]
    parts = [Part(each, 2) for each in terms] + [Part(Terms(tenant="a"), 5), Part(terms[0], 3)]
    note_run(parts, 7, "0", handed=1.0, ended=2.0, device_seconds=0.5, outcome="ran")
    runs = {name: trace.runs for name, trace in traces.items()}
    assert [run.companions for run in runs["a1"]] == [("a2",)]
    assert [run.companions for run in runs["a2"]] == [("a1",)]
    assert [run.companions for run in runs["b1"]] == [()]
    assert [run.own_evaluations for run in runs["a1"]] == [5]
    assert {run.evaluations for each in runs.values() for run in each} == {14}


def test_a_long_request_has_so_many_spans_and_no_more() -> None:
    trace = WorkTrace("long")
    for i in range(1000):
        trace.waited(float(i), i + 0.5, i + 1.0)
        note_run(
            [Part(Terms(trace=trace), 1)],
            i,
            "0",
            handed=float(i),
            ended=i + 1.0,
            device_seconds=0.5,
            outcome="ran",
        )
    kept = len(trace.waits) + len(trace.runs)
    assert kept < 128 and kept + trace.left_out == 2000


def test_without_the_extra_an_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_server.settings.observability.find_spec", lambda name: None)
    check_installed(TracingConfig())
    with pytest.raises(ValueError, match=r"carv\[tracing\]"):
        check_installed(TracingConfig("127.0.0.1:4317"))
