"""The scheduler apart from transport and device, in virtual time: closed-loop callers before a
device of 6 ms a launch and 1 ms a row, with and without holding; and two tenants, one of them a
flood. In real time, what scheduling a request costs before a replica that does nothing.

    python -m benchmarks.scheduling [--seconds 20]

Shares are of the device's own best, ``budget / (launch + budget row)`` evaluations a second.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence

from carv_server.replicas.protocol import MicrobatchResult, Wanted, Work, WorkResult
from carv_server.scheduler import SchedulerConfig
from carv_server.teachers.simulated import DeviceTiming
from tests.support.device import TimedReplica
from tests.support.load import Callers, Measured, load
from tests.support.virtual_time import run_virtually

BUDGET = 8
TIMING = DeviceTiming(0.006, 0.001)
# On the way to a device's thread and back, as measured on a quiet machine.
TRANSIT_SECONDS = 0.0001


def simulated(groups: Sequence[Callers], seconds: float, hold_fraction: float = 0.75) -> Measured:
    config = SchedulerConfig(evaluation_budget=BUDGET, hold_fraction=hold_fraction)
    replica = TimedReplica(TIMING, transit_seconds=TRANSIT_SECONDS)
    return run_virtually(load([replica], config, groups, seconds))


def closed_loop(seconds: float) -> None:
    print("| callers | think ms | share | p50 ms | p99 ms | without: share | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|")
    for think in (0.0005, 0.0015, 0.003, 0.02):
        for count in (1, 2, 4, 8, 12, 16, 32):
            row = f"| {count} | {1e3 * think:g} |"
            for hold in (0.75, 0.0):
                found = simulated([Callers(count, think_seconds=think)], seconds, hold)
                row += f" {found.share(TIMING, BUDGET):.3f} | {_quantiles(found)} |"
            print(row, flush=True)


def tenants(seconds: float) -> None:
    print("\n| tenant | beside it | share | p50 ms | p99 ms |\n|---|---|---|---|---|")
    flood = Callers(64, rows=4, tenant="flood")
    for quiet in (
        Callers(16, tenant="quiet", think_seconds=0.0015),
        Callers(4, tenant="quiet", think_seconds=0.0015),
        Callers(1, rows=8, tenant="quiet", think_seconds=0.0015),
        Callers(1, rows=8, tenant="quiet", think_seconds=0.03),
    ):
        for groups in ([quiet], [quiet, flood]):
            found = simulated(groups, seconds)
            beside = "64 callers of 4 rows" if len(groups) > 1 else "nobody"
            print(
                f"| {quiet.count} callers of {quiet.rows}, {1e3 * quiet.think_seconds:g} ms | "
                f"{beside} | {found.share(TIMING, BUDGET):.3f} | {_quantiles(found)} |",
                flush=True,
            )


class Nothing(TimedReplica):
    """Answers at once."""

    async def run(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        found = [WorkResult() if wanted(index) else None for index in range(len(works))]
        return MicrobatchResult(found, 1e-6)


def overhead(seconds: float) -> None:
    print("\n| callers | requests a second | CPU us a request |\n|---|---|---|")
    for count in (1, 16):
        cpu = time.process_time()
        config = SchedulerConfig(evaluation_budget=BUDGET)
        found = asyncio.run(load([Nothing(TIMING)], config, [Callers(count)], seconds))
        cpu = time.process_time() - cpu
        print(
            f"| {count} | {found.rates[0]:.0f} | {1e6 * cpu / found.snapshot.answered:.0f} |",
            flush=True,
        )


def _quantiles(found: Measured) -> str:
    return f"{1e3 * found.quantile(0.5):.1f} | {1e3 * found.quantile(0.99):.1f}"


PARTS: dict[str, Callable[[float], None]] = {
    "closed-loop": closed_loop,
    "tenants": tenants,
    "overhead": overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--only", choices=PARTS, help="one part")
    arguments = parser.parse_args()
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(arguments.seconds)


if __name__ == "__main__":
    main()
