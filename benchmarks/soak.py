"""Full load for a while: does memory grow, does a request fail, does health answer?

    python -m benchmarks.soak --minutes 10

A server of a simulated device answers callers that never pause: unary estimates of several K,
submitted ones on a stream, kept latents, requests that are cancelled in the queue and deadlines
that pass there. What it holds (see ``benchmarks.measured_server``) is read every second; the slope
is by least squares over the last half of the run. The control, a server that keeps a few bytes of
every answer, must fail the same check, or the check could not see a leak.

Exit codes: 0 all holds, 1 something does not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.measured_server import HELD_FILE
from carv_client import AsyncTeacherClient, CarvError, DeadlineExceededError
from carv_server.bench.load.folders import DEVICE, write_simulated
from carv_server.demo.process import running_server

_SHAPE = (4, 32, 32)
_CALLERS = 12
_LARGEST_SLOPE = 1.0  # MB a minute
_LARGEST_SILENCE = 1.0  # seconds
_LEAK = "CARV_BENCHMARK_LEAK_BYTES"
_LEAKED_BYTES = 2048  # of every answer


@dataclass
class Soak:
    """What a run has shown.

    Attributes:
        memory: (seconds since the start, MB that the server holds).
        resident: MB, at the end.
        failures: what went wrong, in words; none is allowed.
    """

    memory: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    resident: float = 0.0
    requests: int = 0
    cancelled: int = 0
    expired: int = 0
    slowest_health: float = 0.0
    failures: list[str] = field(default_factory=list[str])

    @property
    def slope(self) -> float:
        """MB a minute over the last half."""
        points = np.array(self.memory)
        late = points[points[:, 0] >= points[-1, 0] / 2]
        return float(60.0 * np.polyfit(late[:, 0], late[:, 1], 1)[0])


async def _soak(
    address: str, pid: int, held: Path, seconds: float, say: Callable[[str], None]
) -> Soak:
    found, rng = Soak(), np.random.default_rng(0)
    latents = rng.standard_normal((2, *_SHAPE)).astype(np.float32)
    started = time.monotonic()
    end = started + seconds
    async with AsyncTeacherClient(address) as client:
        kept = await client.keep_latents(latents)
        # All draws of one objective are one history; a seed is used once.
        seeds = iter(range(1 << 40))

        async def unary() -> None:
            await client.estimate_gradient(
                latents, guidance_scale=1.0, draws=int(rng.choice([1, 2, 4, 8])), seed=next(seeds)
            )

        async def streamed() -> None:
            coming = [
                await client.submit(kept, guidance_scale=1.0, draws=2, seed=next(seeds))
                for _ in range(3)
            ]
            for each in coming:
                await each

        async def abandoned() -> None:
            coming = await client.submit(latents, guidance_scale=1.0, draws=64, seed=next(seeds))
            await asyncio.sleep(0.005)
            coming.cancel()
            found.cancelled += 1

        async def late() -> None:
            try:
                await client.estimate_gradient(
                    latents, guidance_scale=1.0, draws=64, seed=next(seeds), timeout=0.02
                )
            except DeadlineExceededError:
                found.expired += 1

        async def call(kind: Callable[[], Awaitable[None]]) -> None:
            while time.monotonic() < end:
                try:
                    await kind()
                    found.requests += 1
                except CarvError as error:
                    found.failures.append(f"{kind.__name__}: {error}")
                    await asyncio.sleep(0.1)

        kinds = [unary] * (_CALLERS - 6) + [streamed] * 4 + [abandoned, late]
        watch = asyncio.create_task(_watch(address, pid, held, started, found, say))
        await asyncio.gather(*(call(kind) for kind in kinds))
        watch.cancel()
    return found


async def _watch(
    address: str, pid: int, held: Path, started: float, found: Soak, say: Callable[[str], None]
) -> None:
    page = os.sysconf("SC_PAGE_SIZE") / 1e6
    async with grpc.aio.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            before = time.monotonic()
            try:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=10.0)
            except grpc.aio.AioRpcError as error:
                found.failures.append(f"health: {error.code().name}")
            now = time.monotonic()
            found.slowest_health = max(found.slowest_health, now - before)
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])  # noqa: ASYNC240
            found.resident = pages * page
            megabytes = int(held.read_text()) / 1e6  # noqa: ASYNC240
            found.memory.append((now - started, megabytes))
            say(f"{now - started:5.0f} s, {megabytes:6.1f} MB, {found.requests} requests")
            await asyncio.sleep(1.0)


def _run(folder: Path, seconds: float, leak: int) -> Soak:
    teacher = write_simulated(folder / "device", _SHAPE, *DEVICE)
    held = folder / "held"
    os.environ |= {_LEAK: str(leak), HELD_FILE: str(held)}
    arguments = ["--teacher", f"simulated={teacher}", "--evaluation-budget", "8"]
    module = "benchmarks.leaking_server" if leak else "benchmarks.measured_server"
    try:
        with running_server(
            folder / "server.log", threads=1, arguments=arguments, module=module
        ) as server:
            return asyncio.run(_soak(server.address, server.pid, held, seconds, _say))
    finally:
        del os.environ[_LEAK], os.environ[HELD_FILE]


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--control-minutes", type=float, default=2.0)
    parser.add_argument(
        "--largest-slope",
        type=float,
        default=_LARGEST_SLOPE,
        help="MB a minute (default: %(default)s); caches still fill in the first few minutes",
    )
    arguments = parser.parse_args()
    ok = True
    for name, minutes, leak in (
        ("server", arguments.minutes, 0),
        ("leaking control", arguments.control_minutes, _LEAKED_BYTES),
    ):
        with tempfile.TemporaryDirectory() as folder:
            found = _run(Path(folder), 60.0 * minutes, leak)
        flat = found.slope < arguments.largest_slope
        print(
            f"{name}: {found.requests} calls, {found.cancelled} cancelled, {found.expired} "
            f"expired, {len(found.failures)} failed; {found.memory[-1][1]:.0f} MB held, "
            f"{found.slope:+.2f} MB a minute over the last half ({'flat' if flat else 'grows'}); "
            f"{found.resident:.0f} MB resident; "
            f"slowest health {1e3 * found.slowest_health:.0f} ms"
        )
        for failure in found.failures[:5]:
            print(f"  {failure}")
        healthy = not found.failures and found.slowest_health <= _LARGEST_SILENCE
        ok = ok and healthy and flat == (leak == 0)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
