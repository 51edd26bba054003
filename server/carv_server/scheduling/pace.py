"""When a replica's next microbatch is formed, and of how many evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from carv_server.scheduling.config import SchedulerConfig
from carv_server.scheduling.cost import CostModel
from carv_server.scheduling.fair_queue import FairQueue
from carv_server.scheduling.hold import Expected, hold_seconds
from carv_server.scheduling.job import Job
from carv_server.scheduling.microbatch import Microbatch
from carv_server.scheduling.returns import ReturnForecast

__all__ = ["LEAST_WAIT_SECONDS", "Pace", "Wait"]

LEAST_WAIT_SECONDS = 0.001
"""What the event loop's timers are coarse by."""

_COST_SMOOTHING = 0.1
# What handing over and coming back take before they are measured.
_FIRST_OVERHEAD_SECONDS = 0.001
_LARGEST_LEAD = 0.5
# A microbatch late by this share of its time stalls: no telling when the device will be free.
_STALLED = 0.25
# Callers are waited for whose returns scatter by this share of the longest hold at most.
_STEADY = 0.5
# Parts of a request on idle replicas should save this share of a launch, or one replica takes it.
_LEAST_SPREAD_GAIN = 0.25


class Wait(NamedTuple):
    """Attributes:
    seconds: until a microbatch should be formed; infinity: once something happens.
    listens: whether an arrival can change that.
    """

    seconds: float
    listens: bool


class Pace:
    """Rows are bound to a microbatch as late as can be: on an idle device at once, unless it pays
    to wait for requests that are about to come (``hold_seconds``); on a busy one shortly before it
    is free, by the measured cost of what runs.

    Args:
        in_flight: microbatches that the replica takes at once.
        idle_replicas: how many of the queue's replicas run nothing, this one included.

    Attributes:
        cost: of a microbatch on this replica.
    """

    def __init__(
        self,
        queue: FairQueue[Job],
        forecast: ReturnForecast,
        config: SchedulerConfig,
        in_flight: int,
        idle_replicas: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._forecast = forecast
        self._config = config
        self._in_flight = in_flight
        self._idle_replicas = idle_replicas
        self._overhead = _FIRST_OVERHEAD_SECONDS
        self._held_since: float | None = None
        self.cost = CostModel()

    def wait(self, now: float, running: Sequence[Microbatch]) -> Wait:
        """For the next microbatch of a replica that runs these."""
        waiting, cost = self._queue.evaluations, self.cost
        if waiting == 0:
            self._held_since = None
            return Wait(math.inf, True)
        if not running:
            return Wait(self._hold(now, waiting), True)
        if len(running) >= self._in_flight or not cost.known:
            return Wait(math.inf, False)
        last = running[-1]
        seconds = cost.seconds(last.evaluations)
        lead = min(2.0 * self._overhead + LEAST_WAIT_SECONDS, _LARGEST_LEAD * seconds)
        early = last.end - lead - now
        if early > 0.0 or now > last.end + _STALLED * seconds:
            return Wait(early if early > 0.0 else math.inf, False)
        if waiting >= self._config.evaluation_budget:
            return Wait(0.0, True)
        # A partial one is bound now only if it would not be held once the device is free.
        callers = [(job.tenant, job.terms.caller) for job in last.answers()]
        expected = self._forecast.after_answers(callers, self._most_hold * _STEADY)
        held = self._hold_seconds(now, waiting, expected, 0.0) > 0.0
        return Wait(math.inf if held else 0.0, True)

    def budget(self) -> int:
        """Evaluations of the next microbatch: all that fit, or an even part for each idle replica
        where that is worth a launch on each."""
        budget, cost = self._config.evaluation_budget, self.cost
        waiting, idle = self._queue.evaluations, self._idle_replicas()
        if idle > 1 and cost.known:
            part = -(-waiting // idle)
            if (waiting - part) * cost.row_seconds >= _LEAST_SPREAD_GAIN * cost.launch_seconds:
                return min(part, budget)
        return budget

    def take_held(self, now: float) -> float:
        """A microbatch is formed: seconds that it was held."""
        held = 0.0 if self._held_since is None else now - self._held_since
        self._held_since = None
        return held

    def observe_overhead(self, seconds: float) -> None:
        """What a microbatch on an idle device took beside its forward."""
        self._overhead += _COST_SMOOTHING * (seconds - self._overhead)

    def _hold(self, now: float, waiting: int) -> float:
        """How much longer a microbatch should wait on this idle device."""
        if (
            waiting >= self._config.evaluation_budget
            or not self.cost.known
            or self._idle_replicas() > 1
        ):
            return 0.0
        since = now if self._held_since is None else self._held_since
        hold = self._hold_seconds(now, waiting, [], now - since)
        if hold > 0.0:
            self._held_since = since
        return hold

    @property
    def _most_hold(self) -> float:
        return self._config.hold_fraction * self.cost.launch_seconds

    def _hold_seconds(
        self, now: float, waiting: int, more: Sequence[Expected], held: float
    ) -> float:
        """``more``: expected beside those whose callers have their answers."""
        most = self._most_hold
        if most <= held:
            return 0.0
        return hold_seconds(
            waiting,
            self._config.evaluation_budget,
            self.cost.launch_seconds,
            self.cost.row_seconds,
            [*self._forecast.expected(now, most * _STEADY), *more],
            most - held,
        )
