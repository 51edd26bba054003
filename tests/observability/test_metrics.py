"""What /metrics says: the names that docs/metrics.md lists, label values from bounded sets, and
either format that a scraper asks for.

Breaks it (tried): a family without its line in the docs; labels that answer with the tenant or
method that they were asked for; a value on a bound counted above it; failures that begin with their
first; a device for each teacher.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics_families,
)

from carv.errors import STATUS_CODES, Reason
from carv_server.config import ServerConfig
from carv_server.observability.families import FAMILIES
from carv_server.observability.histogram import Histogram
from carv_server.observability.labels import CODES, METHODS, TenantLabels, method_label
from carv_server.observability.logs import FIELDS
from carv_server.observability.observability import Observability
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.settings.observability import LogConfig, MetricsConfig, TracingConfig
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.observability.support import fetch, scrape, watched
from tests.server.teachers import oracle_teacher
from tests.server.wire import create_async, estimate_request, path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def names(registry: CollectorRegistry) -> dict[str, str]:
    """Kinds by name as queried."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in registry.collect()
    }


def test_the_docs_list_every_metric_with_its_kind_and_labels() -> None:
    rows = re.findall(
        r"^\| `(carv_\w+)` \| (\w+) \|([^|]*)\|", DOCS.read_text(encoding="utf-8"), re.MULTILINE
    )
    told = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(told) == len(rows), "a name is listed twice"
    own = {family.name: (family.kind, family.labels) for family in FAMILIES}
    process = {
        name: (kind, ())
        for name, kind in names(Observability().registry).items()
        if name.startswith("carv_process_")
    }
    assert len(process) == 6
    assert told == own | process
    assert set(names(Observability().registry)) == set(told)


def test_the_docs_list_every_span_and_every_field_of_the_log() -> None:
    text = DOCS.read_text(encoding="utf-8")
    spans = re.findall(r"^\| `(\w+)` span \|", text, re.MULTILINE)
    assert spans == ["check", "plan", "queue", "microbatch", "replica"]
    assert tuple(re.findall(r"^\| `(\w+)` field \|", text, re.MULTILINE)) == FIELDS


def test_labels_are_bounded_whatever_is_asked() -> None:
    labels = TenantLabels(["lab", "farm"])
    assert [labels(tenant) for tenant in ("", "lab", "farm", "zoo", "lab ")] == [
        "none",
        "lab",
        "farm",
        "other",
        "other",
    ]
    labels.know(["zoo"])
    assert labels("zoo") == "zoo" and labels("lab") == "lab"
    labels.know(f"tenant-{i}" for i in range(5000))
    known = {labels(f"tenant-{i}") for i in range(5000)}
    assert len(known) <= 1001 and "other" in known
    assert method_label("EstimateGradient") == "EstimateGradient"
    assert method_label("../../etc") == "other"
    assert len(METHODS) == 11
    assert all(code < len(CODES) for code in STATUS_CODES.values())


def test_a_call_has_the_labels_of_its_tenant_and_method() -> None:
    observability = Observability(tenants=["lab"])
    observability.begin("EstimateGradient", "lab", lambda: ()).succeeded()
    observability.begin("EstimateGradient", "zoo", lambda: ()).succeeded()
    observability.begin("Unheard", "lab", lambda: ()).cancelled()
    counts = observability._requests
    assert counts.ended == {
        ("EstimateGradient", 0, "lab"): 1,
        ("EstimateGradient", 0, "other"): 1,
        ("other", 1, "lab"): 1,
    }
    assert not any(counts.in_flight.values())


def test_every_failure_that_can_be_is_there_before_the_first() -> None:
    """At zero: Prometheus sees no growth in a series that begins with its first failure."""

    async def main() -> None:
        async with watched(oracle_teacher()) as (server, _):
            samples = await scrape(server)
        found = {
            (dict(labels)["method"], dict(labels)["reason"]): value
            for (name, labels), value in samples.items()
            if name == "carv_request_failures_total"
        }
        assert found == {(method, reason.value): 0 for method in METHODS for reason in Reason}

    asyncio.run(main())


def test_teachers_of_one_device_share_it() -> None:
    """Broken by a count of replicas or of teachers."""

    class Elsewhere(SimulatedTeacher):
        @property
        def device(self) -> torch.device:
            return torch.device("meta", 1)

    timing = DeviceTiming(0.0, 0.0)
    two = {"a": oracle_teacher(), "b": SimulatedTeacher((4,), timing)}
    three = {**two, "c": Elsewhere((4,), timing)}

    async def devices(teachers: Mapping[str, Teacher]) -> float:
        config = ServerConfig(
            address="127.0.0.1:0", warm_up=False, metrics=MetricsConfig("127.0.0.1:0")
        )
        async with RunningServer(config, teachers) as server:
            return (await scrape(server))["carv_devices", frozenset()]

    assert asyncio.run(devices(two)) == 1
    assert asyncio.run(devices(three)) == 2


def test_a_call_ends_once() -> None:
    observability = Observability()
    call = observability.begin("GetTeacher", "", lambda: ())
    call.succeeded()
    call.cancelled()
    call.succeeded()
    assert observability._requests.ended == {("GetTeacher", 0, "none"): 1}


def test_a_histogram_counts_a_bound_below_itself() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.sum == 14.0 and histogram.count == 5


def test_a_scraper_gets_the_format_it_asks_for() -> None:
    async def main() -> None:
        async with watched(oracle_teacher()) as (server, channel):
            handle = await create_async(channel)
            await channel.unary_unary(path("EstimateGradient"))(
                estimate_request([handle]).SerializeToString()
            )
            address = server.observability.metrics_address
            wanted = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
            status, headers, text = await fetch(address, "/metrics", accept=wanted)
            assert status == 200
            assert headers["content-type"].startswith("application/openmetrics-text")
            families = list(open_metrics_families(text))
            assert text.endswith("# EOF\n") and len(families) > 50
            status, headers, text = await fetch(address, "/metrics")
            assert headers["content-type"].startswith("text/plain")

    asyncio.run(main())


def test_gauges_of_a_queue_and_of_what_is_known() -> None:
    async def main() -> None:
        limits = SchedulerConfig(
            evaluation_budget=16, max_waiting_requests=9, max_waiting_evaluations=77
        )
        async with watched(oracle_teacher(), scheduler=limits) as (server, channel):
            handle = await create_async(channel)
            for seed in (1, 2, 3):
                await channel.unary_unary(path("EstimateGradient"))(
                    estimate_request([handle], seed=seed, draws=8).SerializeToString()
                )
            samples = await scrape(server)

            def of(name: str, **more: str) -> float:
                return samples[name, frozenset({"teacher": "mixture", **more}.items())]

            assert of("carv_queue_requests_limit") == 9
            assert of("carv_queue_evaluations_limit") == 77
            assert of("carv_microbatch_budget_evaluations") == 16
            assert of("carv_queue_requests") == of("carv_queue_evaluations") == 0
            assert of("carv_replicas", state="idle") == 1
            assert of("carv_replicas", state="busy") == of("carv_replicas", state="starting") == 0
            assert samples["carv_devices", frozenset()] == 1
            assert of("carv_microbatch_fill_ratio_count") == of("carv_microbatches_total") == 3
            assert of("carv_microbatch_fill_ratio_sum") == pytest.approx(3.0)
            assert of("carv_histories") == 1
            sampling = {"sampler": "nested", "coupling": "antithetic"}
            assert of("carv_estimates_total", proposal="prior", **sampling) == 1
            assert of("carv_estimates_total", proposal="adaptive", **sampling) == 2
            assert 0 < of("carv_effective_sample_ratio") <= 1
            assert of("carv_noise_variance") > 0 and of("carv_sampling_efficiency") > 0
            assert of("carv_device_seconds_total") == pytest.approx(
                of("carv_reply_device_seconds_total", tenant="none")
            )
            assert samples["carv_ready", frozenset()] == 1
            assert samples["carv_draining", frozenset()] == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MetricsConfig("9464"), "'9464' must be host:port"),
        (lambda: MetricsConfig("127.0.0.1:99999"), "must be host:port"),
        (lambda: MetricsConfig("127.0.0.1:9464/metrics"), "must be host:port"),
        (lambda: TracingConfig("collector"), "'collector' must be host:port"),
        (lambda: TracingConfig("ftp://collector:4317"), "must be host:port"),
        (lambda: TracingConfig("collector:4317", 1.5), "tracing.sample_ratio is 1.5"),
        (lambda: TracingConfig("", float("nan")), "tracing.sample_ratio is nan"),
        (lambda: LogConfig("loud"), "log.level is 'loud'"),
        (lambda: LogConfig("info", "xml"), "log.format is 'xml'"),
    ],
)
def test_a_bad_setting_is_named(make: type, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


@pytest.mark.parametrize("address", ["", "127.0.0.1:0", "[::1]:9464", "metrics.farm:80"])
def test_good_addresses(address: str) -> None:
    assert MetricsConfig(address).address == address


@pytest.mark.parametrize("endpoint", ["", "collector:4317", "https://a.b:4317", "http://[::1]:1"])
def test_good_endpoints(endpoint: str) -> None:
    assert TracingConfig(endpoint, 0.25).endpoint == endpoint
