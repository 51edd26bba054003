"""Bounds and weights of one teacher's queue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SchedulerConfig"]


@dataclass(frozen=True)
class SchedulerConfig:
    """Settings of one teacher's queue.

    Attributes:
        evaluation_budget: evaluations in one microbatch.
        max_waiting_evaluations: evaluations that may wait; over it, requests are refused.
        max_waiting_requests: requests that may wait.
        tenant_weights: shares of the device while several tenants wait; who is not named has
            weight 1.
        hold_fraction: longest time that a partial microbatch waits on an idle device for requests
            that are expected, as a share of the measured cost of a launch; 0: it never waits.

    Raises:
        ValueError: a value is out of range.
    """

    evaluation_budget: int = 64
    max_waiting_evaluations: int = 1 << 16
    max_waiting_requests: int = 1024
    tenant_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    hold_fraction: float = 0.75

    def __post_init__(self) -> None:
        for name in ("evaluation_budget", "max_waiting_evaluations", "max_waiting_requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for tenant, weight in self.tenant_weights.items():
            if not 0.0 < weight < math.inf:
                raise ValueError(f"weight of tenant {tenant!r} is {weight}; it must be above 0")
        if not 0.0 <= self.hold_fraction <= 1.0:
            raise ValueError(f"hold_fraction is {self.hold_fraction}; it must be in 0 .. 1")
