"""What the status page says, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from carv_server.observability.collector import ServerFacts
from carv_server.observability.counts import RequestCounts
from carv_server.observability.efficiency import LiveProfile
from carv_server.observability.labels import TenantLabels
from carv_server.observability.rates import Rates
from carv_server.observability.watched import Quota, WatchedTeacher
from carv_server.scheduling.snapshot import ReplicaSnapshot

__all__ = ["StatusView", "TeacherStatus", "TenantStatus", "status_view", "totals"]

_MOST_ROWS = 50
_MOST_TEACHERS = 16
# The call around requests that are counted one by one.
_STREAM_CALL = "StreamGradients"


@dataclass(frozen=True)
class TenantStatus:
    """Attributes:
    share: of the evaluations in replies of the last minute, 0 .. 1; None where there were none.
    """

    name: str
    waiting_requests: int
    waiting_evaluations: int
    evaluations_per_second: float
    share: float | None
    quota: Quota | None


@dataclass(frozen=True)
class TeacherStatus:
    """Attributes:
    busy_share: forwards' seconds over the replicas' in the last minute.
    fill: mean of all microbatches; None before the first.
    """

    id: str
    description: str
    device: str
    states: Mapping[str, int]
    replicas: tuple[ReplicaSnapshot, ...]
    waiting_requests: int
    waiting_evaluations: int
    waiting_evaluations_limit: int
    evaluations_per_second: float
    busy_share: float
    fill: float | None
    noise_variance: float | None
    sample_ratio: float | None
    profile: LiveProfile | None


@dataclass(frozen=True)
class StatusView:
    """Attributes:
    seconds: that rates are over.
    left_out: rows of tenants and teachers that are not shown.
    """

    version: str
    state: str
    uptime_seconds: float
    seconds: float
    requests_per_second: float
    failures_per_second: float
    evaluations_per_second: float
    requests_in_flight: int
    open_streams: int
    tenants: tuple[TenantStatus, ...]
    teachers: tuple[TeacherStatus, ...]
    left_out: int


def totals(requests: RequestCounts, teachers: list[WatchedTeacher]) -> dict[str, float]:
    """What ``Rates`` reads: "requests", "failures", "teacher ID", "device ID", "tenant ID"."""
    found: dict[str, float] = {"requests": 0.0, "failures": 0.0}
    for (method, code, _), number in requests.ended.items():
        if method != _STREAM_CALL:
            found["requests"] += number
            found["failures"] += number if code else 0
    for teacher in teachers:
        counts = teacher.counts
        found[f"teacher {teacher.id}"] = counts.computed_evaluations
        found[f"device {teacher.id}"] = counts.device_seconds
        for tenant, spent in counts.spent.items():
            name = f"tenant {tenant}"
            found[name] = found.get(name, 0.0) + spent.evaluations
    return found


def status_view(
    facts: ServerFacts,
    requests: RequestCounts,
    tenants: TenantLabels,
    rates: Rates,
    *,
    uptime_seconds: float,
    quota: Callable[[str], Quota | None],
) -> StatusView:
    """Args:
    quota: of a tenant's label.
    """
    seconds, grown = rates.grown()

    def rate(name: str) -> float:
        return grown.get(name, 0.0) / seconds if seconds > 0 else 0.0

    waiting: dict[str, tuple[int, int]] = {}
    shown: list[TeacherStatus] = []
    for teacher in facts.teachers:
        shown.append(_teacher(teacher, rate))
        for tenant, its in teacher.snapshot().tenants.items():
            label = tenants(tenant)
            had = waiting.get(label, (0, 0))
            waiting[label] = (had[0] + its.requests, had[1] + its.evaluations)
    names = sorted({*waiting, *(name[7:] for name in grown if name.startswith("tenant "))})
    served = sum(grown.get(f"tenant {name}", 0.0) for name in names)
    rows = [
        TenantStatus(
            name,
            *waiting.get(name, (0, 0)),
            rate(f"tenant {name}"),
            grown.get(f"tenant {name}", 0.0) / served if served > 0 else None,
            quota(name),
        )
        for name in names
    ]
    rows.sort(key=lambda row: -row.evaluations_per_second)
    in_flight = requests.in_flight
    streams = in_flight[_STREAM_CALL]
    return StatusView(
        version=facts.build[0],
        state="draining" if facts.draining else "serving" if facts.ready else "starting",
        uptime_seconds=uptime_seconds,
        seconds=seconds,
        requests_per_second=rate("requests"),
        failures_per_second=rate("failures"),
        evaluations_per_second=sum(row.evaluations_per_second for row in shown),
        requests_in_flight=sum(in_flight.values()) - streams,
        open_streams=streams,
        tenants=tuple(rows[:_MOST_ROWS]),
        teachers=tuple(shown[:_MOST_TEACHERS]),
        left_out=max(0, len(rows) - _MOST_ROWS) + max(0, len(shown) - _MOST_TEACHERS),
    )


def _teacher(teacher: WatchedTeacher, rate: Callable[[str], float]) -> TeacherStatus:
    snapshot, counts = teacher.snapshot(), teacher.counts
    description = teacher.encoder.description
    return TeacherStatus(
        id=teacher.id,
        description=description.family,
        device=teacher.encoder.device,
        states=teacher.replica_states(snapshot),
        replicas=snapshot.replicas[:_MOST_ROWS],
        waiting_requests=snapshot.waiting.requests,
        waiting_evaluations=snapshot.waiting.evaluations,
        waiting_evaluations_limit=teacher.limits.max_waiting_evaluations,
        evaluations_per_second=rate(f"teacher {teacher.id}"),
        busy_share=rate(f"device {teacher.id}") / max(1, len(snapshot.replicas)),
        fill=snapshot.mean_fill if snapshot.microbatches else None,
        noise_variance=counts.mean_variance(),
        sample_ratio=counts.mean_sample_ratio(),
        profile=teacher.profile(),
    )
