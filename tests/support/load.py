"""Closed-loop callers before a scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carv_server.replicas.protocol import Replica
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.scheduling.snapshot import SchedulerSnapshot
from carv_server.scheduling.terms import Terms
from carv_server.teachers.simulated import DeviceTiming
from tests.support.device import work_of

__all__ = ["Callers", "Measured", "load"]

WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Callers:
    """So many closed-loop callers of one tenant, each with one request in flight.

    ``think_seconds``: mean time from an answer to the next request; uniform within half of it.
    """

    count: int
    rows: int = 1
    tenant: str = ""
    think_seconds: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Of each group: evaluations a second, and latencies in seconds."""

    rates: list[float]
    latencies: list[list[float]]
    snapshot: SchedulerSnapshot

    def share(self, timing: DeviceTiming, budget: int, index: int = 0) -> float:
        """Of the device's best."""
        return self.rates[index] * timing.seconds(budget) / budget

    def quantile(self, q: float, index: int = 0) -> float:
        return float(np.quantile(self.latencies[index], q))


async def load(
    replicas: Sequence[Replica], config: SchedulerConfig, groups: Sequence[Callers], seconds: float
) -> Measured:
    """Run all callers for a while after a warm-up. Rates are of answers in that time, latencies of
    requests that also began in it."""
    loop = asyncio.get_running_loop()
    scheduler = Scheduler(replicas, config, loop.time)
    begin = loop.time() + WARM_UP_SECONDS
    end = begin + seconds
    answered = [0] * len(groups)
    latencies: list[list[float]] = [[] for _ in groups]

    async def call(index: int, number: int) -> None:
        group = groups[index]
        work, think = work_of(group.rows), group.think_seconds
        rng = np.random.default_rng([index, number])
        terms = Terms(tenant=group.tenant, caller=f"{index}/{number}")
        while (started := loop.time()) < end:
            await scheduler.submit(work, terms)
            if begin <= loop.time() <= end:
                answered[index] += 1
                if begin <= started:
                    latencies[index].append(loop.time() - started)
            if think:
                await asyncio.sleep(think * rng.uniform(0.5, 1.5))

    scheduler.start()
    calls = [call(i, n) for i, group in enumerate(groups) for n in range(group.count)]
    await asyncio.gather(*calls)
    snapshot = scheduler.snapshot()
    await scheduler.stop()
    rates = [count * group.rows / seconds for count, group in zip(answered, groups, strict=True)]
    return Measured(rates, latencies, snapshot)
