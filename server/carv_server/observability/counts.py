"""Running totals in plain numbers and dicts, added to on the event loop and read at a scrape.

A request costs a few dictionary updates here. What needs arithmetic over arrays, such as means of
variances, keeps references to the last replies' small arrays and is left to the scrape.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from carv.errors import Reason
from carv_server.observability.histogram import FILL_BOUNDS, SECONDS_BOUNDS, Histogram
from carv_server.observability.labels import METHODS
from carv_server.observability.notes import CallNotes, Sampled
from carv_server.sampling.plan import Resolved
from carv_server.scheduling.snapshot import MicrobatchReport

__all__ = ["WINDOW", "InUse", "RequestCounts", "Spent", "TeacherCounts"]

Float64Array = npt.NDArray[np.float64]

WINDOW = 256
"""Replies that the means over recent ones are taken over."""
_EXPLICIT = ("explicit", "explicit", "explicit")


class RequestCounts:
    """Requests, by labels that are bounded already.

    Attributes:
        failures: all that can be, from the start: what grows over a time is seen by that from its
            first one on.
    """

    def __init__(self) -> None:
        self.ended: dict[tuple[str, int, str], int] = {}
        self.failures = {(method, reason.value): 0 for method in METHODS for reason in Reason}
        self.in_flight = dict.fromkeys(METHODS, 0)
        self.durations = {method: Histogram(SECONDS_BOUNDS) for method in METHODS}

    def begin(self, method: str) -> None:
        self.in_flight[method] += 1

    def end(self, method: str, code: int, tenant: str, seconds: float | None, reason: str) -> None:
        """Args:
        seconds: None for a call that was not served, and so took none.
        reason: of the catalogue, or "".
        """
        self.in_flight[method] -= 1
        if seconds is not None:
            self.durations[method].observe(seconds)
        key = (method, code, tenant)
        self.ended[key] = self.ended.get(key, 0) + 1
        if reason:
            self.failures[method, reason] += 1


@dataclass
class Spent:
    """What replies to one tenant say was spent on one teacher."""

    evaluations: int = 0
    draws: int = 0
    device_seconds: float = 0.0


class InUse(NamedTuple):
    """The sampling of the last estimate whose draws the server placed."""

    sampled: Sampled
    resolved: Resolved
    tenant: str


@dataclass
class TeacherCounts:
    """One teacher's.

    Attributes:
        spent: by tenant label.
        sampling: estimates by sampler, proposal and coupling.
        variances: noise variances, float64 [R], of the last replies that had any.
        sample_sizes: effective sample sizes, float64 [R], and the K that each is of.
    """

    spent: dict[str, Spent] = field(default_factory=dict[str, Spent])
    sampling: dict[tuple[str, str, str], int] = field(
        default_factory=dict[tuple[str, str, str], int]
    )
    variances: deque[Float64Array] = field(default_factory=lambda: deque(maxlen=WINDOW))
    sample_sizes: deque[tuple[Float64Array, int]] = field(
        default_factory=lambda: deque(maxlen=WINDOW)
    )
    in_use: InUse | None = None
    microbatches: int = 0
    microbatch_requests: int = 0
    computed_evaluations: int = 0
    device_seconds: float = 0.0
    fill: Histogram = field(default_factory=lambda: Histogram(FILL_BOUNDS))
    forward: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    wait: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))

    def on_microbatch(self, report: MicrobatchReport) -> None:
        """What ``Scheduler`` observes."""
        self.microbatches += 1
        self.microbatch_requests += report.requests
        self.computed_evaluations += report.evaluations
        self.device_seconds += report.seconds
        self.fill.observe(report.fill)
        self.forward.observe(report.seconds)
        for seconds in report.waits:
            self.wait.observe(seconds)

    def on_spent(self, tenant: str, draws: int, evaluations: int, seconds: float) -> None:
        """What the last reply to a call says."""
        if not evaluations:
            return
        spent = self.spent.get(tenant)
        if spent is None:
            spent = self.spent[tenant] = Spent()
        spent.evaluations += evaluations
        spent.draws += draws
        spent.device_seconds += seconds

    def on_answer(self, call: CallNotes) -> None:
        """A call that ended well."""
        self.on_spent(call.tenant, call.draws, call.evaluations, call.compute_seconds)
        sampled = call.sampled
        if sampled is None:
            return
        resolved, key = sampled.resolved, _EXPLICIT
        if resolved is not None:
            key = (resolved.sampler.value, resolved.proposal.value, resolved.coupling.value)
            self.in_use = InUse(sampled, resolved, call.tenant_id)
        self.sampling[key] = self.sampling.get(key, 0) + 1
        if sampled.noise_variance is not None:
            self.variances.append(sampled.noise_variance)
        if sampled.effective_sample_size is not None:
            self.sample_sizes.append((sampled.effective_sample_size, sampled.draws))

    def mean_variance(self) -> float | None:
        """Mean over the renders of a reply, then over replies; None before the first."""
        means = [float(each.mean()) for each in self.variances if each.size]
        return sum(means) / len(means) if means else None

    def mean_sample_ratio(self) -> float | None:
        """Likewise, of effective sample size over K."""
        means = [float(each.mean()) / draws for each, draws in self.sample_sizes if each.size]
        return sum(means) / len(means) if means else None
