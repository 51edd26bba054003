"""What the scheduler counts, for metrics and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from carv_server.scheduling.fair_queue import Waiting

__all__ = ["MicrobatchReport", "ReplicaSnapshot", "SchedulerSnapshot", "Tally"]

# Weight of the last forward in what an evaluation takes.
_SMOOTHING = 0.1


@dataclass(frozen=True)
class MicrobatchReport:
    """One microbatch that ran.

    Attributes:
        requests: whose rows were in it.
        evaluations: rows that the teacher saw; ``fill`` is their share of the budget.
        seconds: of the forward.
        held_seconds: how long it waited on an idle device for requests that were expected.
        waits: of the requests that it was the first microbatch of, seconds since submission.
    """

    requests: int
    evaluations: int
    fill: float
    seconds: float
    held_seconds: float
    waits: tuple[float, ...] = ()


@dataclass(frozen=True)
class ReplicaSnapshot:
    """One replica: what it runs now, and what a microbatch is thought to cost on it."""

    microbatches_in_flight: int
    evaluations_in_flight: int
    launch_seconds: float
    row_seconds: float


@dataclass(frozen=True)
class SchedulerSnapshot:
    """The queue now, and totals since the start.

    Attributes:
        waiting: over all tenants; ``tenants``: of each that has something waiting.
        evaluation_seconds: smoothed; 0 before the first microbatch.
        microbatches, evaluations: that ran.
        mean_fill: mean share of the budget that a microbatch used.
        held_seconds: that devices idled for requests that were expected.
        answered, failed, expired, cancelled: requests; ``refused``: at a full queue.
        lost_microbatches: with their replicas; ``retried``: parts of requests that went back into
            the queue for it.
    """

    waiting: Waiting
    tenants: Mapping[str, Waiting]
    replicas: tuple[ReplicaSnapshot, ...]
    evaluation_seconds: float
    microbatches: int
    evaluations: int
    mean_fill: float
    held_seconds: float
    answered: int
    failed: int
    expired: int
    cancelled: int
    refused: int
    lost_microbatches: int
    retried: int


@dataclass
class Tally:
    """Running totals; see ``SchedulerSnapshot``."""

    evaluation_seconds: float = 0.0
    microbatches: int = 0
    evaluations: int = 0
    held_seconds: float = 0.0
    answered: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    refused: int = 0
    lost_microbatches: int = 0
    retried: int = 0

    def count_forward(self, evaluations: int, seconds: float, held_seconds: float) -> None:
        """One that computed so many evaluations, at least one."""
        share = 1.0 if self.microbatches == 0 else _SMOOTHING
        self.evaluation_seconds += share * (seconds / evaluations - self.evaluation_seconds)
        self.microbatches += 1
        self.evaluations += evaluations
        self.held_seconds += held_seconds
