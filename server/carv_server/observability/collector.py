"""Counts and snapshots to Prometheus's families, at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from carv_server.observability.counts import RequestCounts
from carv_server.observability.families import FAMILIES, Family
from carv_server.observability.histogram import Histogram
from carv_server.observability.labels import CODES, TenantLabels
from carv_server.observability.watched import Store, WatchedTeacher
from carv_server.scheduling.snapshot import SchedulerSnapshot

__all__ = ["ServerCollector", "ServerFacts"]


@dataclass
class ServerFacts:
    """What there is to know of the server apart from its teachers.

    Attributes:
        build: values of ``carv_build_info``'s labels.
        spans: exported and dropped so far.
    """

    build: tuple[str, ...]
    spans: Callable[[], tuple[int, int]]
    suppressed_lines: Callable[[], int]
    ready: bool = False
    draining: bool = False
    conditionings: Store | None = None
    teachers: list[WatchedTeacher] = field(default_factory=list[WatchedTeacher])


class _Page:
    """All families, empty at first."""

    def __init__(self) -> None:
        self._families = {family.name: _family(family) for family in FAMILIES}

    def add(self, name: str, labels: Sequence[str], value: float) -> None:
        family = self._families[name]
        assert isinstance(family, (CounterMetricFamily, GaugeMetricFamily))
        family.add_metric(labels, value)

    def add_histogram(self, name: str, labels: Sequence[str], histogram: Histogram) -> None:
        family = self._families[name]
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric(labels, histogram.buckets(), histogram.sum)

    def families(self) -> Iterable[Metric]:
        return self._families.values()


def _family(family: Family) -> Metric:
    if family.kind == "counter":
        return CounterMetricFamily(family.name, family.help, labels=family.labels)
    if family.kind == "histogram":
        return HistogramMetricFamily(family.name, family.help, labels=family.labels)
    return GaugeMetricFamily(family.name, family.help, labels=family.labels)


class ServerCollector(Collector):
    """Reads on the event loop that counts."""

    def __init__(self, facts: ServerFacts, requests: RequestCounts, tenants: TenantLabels) -> None:
        self._facts = facts
        self._requests = requests
        self._tenants = tenants

    def describe(self) -> Iterator[Metric]:
        return iter(_Page().families())

    def collect(self) -> Iterator[Metric]:
        page = _Page()
        self._add_requests(page)
        in_process: set[str] = set()
        elsewhere = 0
        for teacher in self._facts.teachers:
            snapshot = teacher.snapshot()
            self._add_queue(page, teacher, snapshot)
            _add_teacher(page, teacher)
            if teacher.device:
                in_process.add(teacher.device)
            else:
                elsewhere += len(snapshot.replicas)
        page.add("carv_devices", (), len(in_process) + elsewhere)
        self._add_server(page)
        return iter(page.families())

    def _add_requests(self, page: _Page) -> None:
        counts = self._requests
        for (method, code, tenant), number in counts.ended.items():
            page.add("carv_requests_total", (method, CODES[code], tenant), number)
        for labels, number in counts.failures.items():
            page.add("carv_request_failures_total", labels, number)
        for method, histogram in counts.durations.items():
            page.add_histogram("carv_request_duration_seconds", (method,), histogram)
        for method, number in counts.in_flight.items():
            page.add("carv_requests_in_flight", (method,), number)

    def _add_queue(self, page: _Page, teacher: WatchedTeacher, snapshot: SchedulerSnapshot) -> None:
        limits, name = teacher.limits, (teacher.id,)
        replicas = snapshot.replicas
        count = max(1, len(replicas))
        page.add("carv_queue_requests", name, snapshot.waiting.requests)
        page.add("carv_queue_evaluations", name, snapshot.waiting.evaluations)
        page.add("carv_queue_requests_limit", name, limits.max_waiting_requests)
        page.add("carv_queue_evaluations_limit", name, limits.max_waiting_evaluations)
        waiting: dict[str, list[int]] = {}
        for tenant, of_it in snapshot.tenants.items():
            total = waiting.setdefault(self._tenants(tenant), [0, 0])
            total[0] += of_it.requests
            total[1] += of_it.evaluations
        for tenant, (requests, evaluations) in waiting.items():
            page.add("carv_tenant_queue_requests", (teacher.id, tenant), requests)
            page.add("carv_tenant_queue_evaluations", (teacher.id, tenant), evaluations)
        for outcome in ("answered", "failed", "expired", "cancelled", "refused"):
            page.add("carv_jobs_total", (teacher.id, outcome), getattr(snapshot, outcome))
        page.add("carv_lost_microbatches_total", name, snapshot.lost_microbatches)
        page.add("carv_retries_total", name, snapshot.retried)
        page.add("carv_held_seconds_total", name, snapshot.held_seconds)
        page.add("carv_evaluation_seconds", name, snapshot.evaluation_seconds)
        page.add(
            "carv_microbatches_in_flight", name, sum(r.microbatches_in_flight for r in replicas)
        )
        page.add("carv_evaluations_in_flight", name, sum(r.evaluations_in_flight for r in replicas))
        page.add("carv_microbatch_budget_evaluations", name, limits.evaluation_budget)
        for state, number in teacher.replica_states(snapshot).items():
            page.add("carv_replicas", (teacher.id, state), number)
        launch = sum(replica.launch_seconds for replica in replicas) / count
        page.add("carv_replica_launch_seconds", name, launch)
        row = sum(replica.row_seconds for replica in replicas) / count
        page.add("carv_replica_row_seconds", name, row)

    def _add_server(self, page: _Page) -> None:
        facts = self._facts
        latents = [teacher.latents for teacher in facts.teachers]
        _add_stores(page, "conditioning", [facts.conditionings] if facts.conditionings else [])
        _add_stores(page, "latents", latents)
        page.add("carv_ready", (), facts.ready)
        page.add("carv_draining", (), facts.draining)
        page.add("carv_build_info", facts.build, 1)
        exported, dropped = facts.spans()
        page.add("carv_trace_spans_exported_total", (), exported)
        page.add("carv_trace_spans_dropped_total", (), dropped)
        page.add("carv_log_lines_suppressed_total", (), facts.suppressed_lines())


def _add_teacher(page: _Page, teacher: WatchedTeacher) -> None:
    counts, name = teacher.counts, (teacher.id,)
    for tenant, spent in counts.spent.items():
        labels = (tenant, teacher.id)
        page.add("carv_evaluations_total", labels, spent.evaluations)
        page.add("carv_draws_total", labels, spent.draws)
        page.add("carv_reply_device_seconds_total", labels, spent.device_seconds)
    page.add_histogram("carv_queue_wait_seconds", name, counts.wait)
    page.add("carv_microbatches_total", name, counts.microbatches)
    page.add_histogram("carv_microbatch_fill_ratio", name, counts.fill)
    page.add("carv_microbatch_requests_total", name, counts.microbatch_requests)
    page.add("carv_computed_evaluations_total", name, counts.computed_evaluations)
    page.add("carv_device_seconds_total", name, counts.device_seconds)
    page.add_histogram("carv_forward_duration_seconds", name, counts.forward)
    for how, number in counts.sampling.items():
        page.add("carv_estimates_total", (teacher.id, *how), number)
    variance, ratio, profile = counts.mean_variance(), counts.mean_sample_ratio(), teacher.profile()
    if variance is not None:
        page.add("carv_noise_variance", name, variance)
    if ratio is not None:
        page.add("carv_effective_sample_ratio", name, ratio)
    if profile is not None and profile.efficiency is not None:
        page.add("carv_sampling_efficiency", name, profile.efficiency)
    page.add("carv_past_draws", name, 0.0 if profile is None else profile.draws)
    page.add("carv_histories", name, len(teacher.histories))
    page.add("carv_histories_limit", name, teacher.histories.most)
    description = teacher.encoder.description
    labels = (teacher.id, description.family, description.digest, teacher.encoder.device)
    page.add("carv_teacher_info", labels, 1)


def _add_stores(page: _Page, cache: str, stores: Sequence[Store]) -> None:
    """Summed: the latents of each teacher have a store of their own."""
    counts = [store.counts() for store in stores]
    name = (cache,)
    page.add("carv_cache_entries", name, sum(each.entries for each in counts))
    page.add("carv_cache_bytes", name, sum(each.size for each in counts))
    page.add("carv_cache_entries_limit", name, sum(store.config.max_entries for store in stores))
    page.add("carv_cache_bytes_limit", name, sum(store.config.max_bytes for store in stores))
    page.add("carv_cache_hits_total", name, sum(each.hits for each in counts))
    page.add("carv_cache_misses_total", name, sum(each.misses for each in counts))
    expired = sum(each.expired for each in counts)
    page.add("carv_cache_evictions_total", (cache, "expired"), expired)
    page.add("carv_cache_evictions_total", (cache, "full"), sum(each.evicted for each in counts))
