"""What is counted, shown, logged and traced is its tenant's.

Breaks it (tried): a front that begins every call without its tenant; a history looked up without
it; a call denied at the door that nobody counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import pytest

from carv.v1 import teacher_service_pb2 as pb
from carv_server.observability.labels import NONE, OTHER
from carv_server.observability.logs import formatter
from carv_server.observability.status_page import status_html
from carv_server.observability.watched import Quota
from carv_server.settings.observability import MetricsConfig, TracingConfig
from carv_server.tenants.tenant import RESERVED_IDS
from tests.observability.support import attributes, collector, settled
from tests.server.streamed import Stream
from tests.server.teachers import oracle_teacher
from tests.server.wire import estimate_request, path
from tests.support.tenants import bearer, serving, tenant


class _Lines(logging.Handler):
    """The log, as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(formatter("json"))
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(json.loads(self.format(record)))


def test_each_tenants_own() -> None:
    lab = tenant("lab", evaluations_per_second=5000.0, evaluations_in_flight=640)
    spent: Counter[str] = Counter()
    log = _Lines()

    async def main(endpoint: str) -> None:
        async with (
            serving(
                {"mixture": oracle_teacher()},
                [lab, tenant("farm")],
                metrics=MetricsConfig("127.0.0.1:0"),
                tracing=TracingConfig(endpoint),
            ) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            source = pb.CreateConditioningRequest()
            source.source.classes.class_ids.append(0)
            for name, requests in (("lab", 3), ("farm", 2)):
                create = channel.unary_unary(path("CreateConditioning"))
                made = pb.CreateConditioningResponse.FromString(
                    await create(source.SerializeToString(), metadata=bearer(name))
                )
                handle = made.conditionings[0].handle
                ask = channel.unary_unary(path("EstimateGradient"))
                for seed in range(requests):
                    data = estimate_request([handle], seed=seed).SerializeToString()
                    reply = await ask(data, metadata=bearer(name))
                    spent[name] += pb.EstimateGradientResponse.FromString(reply).evaluations_spent
                stream = Stream(channel, metadata=bearer(name))
                await stream.ask(1, estimate_request([handle], seed=99))
                spent[name] += (await stream.answer()).estimate.evaluations_spent
                await stream.half_close()
                await stream.ended()
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(b"\xff", metadata=bearer("farm"))
            for stranger in ((), bearer("zoo")):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(b"", metadata=stranger)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            samples = await settled(server)

            def ended(method: str, code: str, name: str) -> float:
                labels = {"method": method, "code": code, "tenant": name}
                return samples["carv_requests_total", frozenset(labels.items())]

            for name, requests in (("lab", 3), ("farm", 2)):
                assert ended("EstimateGradient", "OK", name) == requests
                assert ended("CreateConditioning", "OK", name) == 1
                assert ended("StreamGradients", "OK", name) == 1
                assert ended("StreamGradients/request", "OK", name) == 1
                of = frozenset({"teacher": "mixture", "tenant": name}.items())
                assert samples["carv_evaluations_total", of] == spent[name]
            assert ended("EstimateGradient", "INVALID_ARGUMENT", "farm") == 1
            assert ended("EstimateGradient", "UNAUTHENTICATED", "other") == 2
            # Who is turned away at the door took no time: the five served and the one malformed.
            label = frozenset({("method", "EstimateGradient")})
            assert samples["carv_request_duration_seconds_count", label] == 6
            tenants = {dict(labels).get("tenant") for _, labels in samples}
            assert tenants == {None, "lab", "farm", "other"}
            efficiency = ("carv_sampling_efficiency", frozenset({("teacher", "mixture")}))
            assert efficiency in samples, "of a tenant's history"

            view = server.observability.view()
            shown = {each.name: each for each in view.tenants}
            assert set(shown) == {"lab", "farm"}
            assert shown["lab"].quota == Quota(5000.0, 640)
            assert shown["farm"].quota == Quota(None, None)
            shares = [each.share for each in shown.values()]
            assert None not in shares and sum(filter(None, shares)) == pytest.approx(1.0)
            assert view.teachers[0].profile is not None
            assert "5,000/s, 640 in flight" in status_html(view)

    access = logging.getLogger("carv_server.access")
    before = access.level
    access.addHandler(log)
    access.setLevel(logging.DEBUG)
    try:
        with collector() as seen:
            asyncio.run(main(seen.address))
    finally:
        access.removeHandler(log)
        access.setLevel(before)
    assert Counter(record["tenant"] for record in log.records) == {"lab": 6, "farm": 6}
    roots = [span for span in seen.spans if not span.parent_span_id]
    traced = Counter(attributes(root)["carv.tenant"] for root in roots)
    assert traced == {"lab": 6, "farm": 6}


def test_no_tenant_has_the_id_of_a_label() -> None:
    assert {NONE, OTHER} == RESERVED_IDS
