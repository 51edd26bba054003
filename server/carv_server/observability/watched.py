"""What is looked at when somebody looks: one teacher's parts, as the composition root has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from carv_server.history import DrawHistories
from carv_server.observability.counts import TeacherCounts
from carv_server.observability.efficiency import LiveProfile, live_profile
from carv_server.scheduling.config import SchedulerConfig
from carv_server.scheduling.snapshot import SchedulerSnapshot
from carv_server.store import StoreConfig, StoreCounts
from carv_server.teachers.protocol import TeacherDescription

__all__ = ["Encoder", "Quota", "Store", "WatchedTeacher"]


class Store(Protocol):
    """A store of handles."""

    config: StoreConfig

    def counts(self) -> StoreCounts: ...


class Encoder(Protocol):
    @property
    def description(self) -> TeacherDescription: ...

    @property
    def device(self) -> str: ...


@dataclass(frozen=True)
class Quota:
    """Of one tenant; None: unlimited."""

    evaluations_per_second: float | None = None
    evaluations_in_flight: int | None = None


@dataclass(frozen=True)
class WatchedTeacher:
    """Attributes:
    snapshot: of its queue.
    wanted_replicas: those there and those starting or being replaced.
    device: what its forwards take turns on with those of other teachers of the same; "" where
        each replica has a device of its own.
    """

    id: str
    counts: TeacherCounts
    snapshot: Callable[[], SchedulerSnapshot]
    limits: SchedulerConfig
    histories: DrawHistories
    latents: Store
    encoder: Encoder
    wanted_replicas: Callable[[], int]
    device: str

    def replica_states(self, snapshot: SchedulerSnapshot) -> dict[str, int]:
        """Replicas by state: "busy" and "idle" ones take work, "starting" ones are wanted and not
        there yet, or not there any more."""
        busy = sum(replica.microbatches_in_flight > 0 for replica in snapshot.replicas)
        there = len(snapshot.replicas)
        return {
            "busy": busy,
            "idle": there - busy,
            "starting": max(0, self.wanted_replicas() - there),
        }

    def profile(self) -> LiveProfile | None:
        """Of the history used last; None before there is one."""
        in_use = self.counts.in_use
        if in_use is None:
            return None
        return live_profile(in_use, self.histories, self.encoder.description.schedule)
