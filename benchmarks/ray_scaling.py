"""How Ray replicas scale, what crossing into one costs, and what the loss of one costs.

    make bench-ray                        # about five minutes
    make bench-ray ARGS="--seconds 4 --rounds 1"

Every teacher here is a simulated device with a GPU's timing, 60 ms a launch and 2.5 ms a row, so
that a machine with two cores can hold four of them. Everything goes through ``carv serve`` and
gRPC. Writes out/bench/ray_scaling.md and .csv. Ratios carry over between machines; rates do not.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from carv_client import AsyncTeacherClient, CarvError
from carv_client import Conditioning as Handle
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.preparation import Preparation
from carv_server.replicas.protocol import Branch, Conditioning, Replica, Work
from carv_server.replicas.ray_cluster import open_cluster
from carv_server.replicas.ray_config import RayConfig
from carv_server.replicas.ray_pool import RayPool
from carv_server.replicas.ray_replica import WorkerSettings
from carv_server.teachers.registry import TeacherRegistration
from carv_server.teachers.simulated import load_simulated
from tests.replicas.processes import alive, descendants
from tests.replicas.wire_works import make
from tests.support.process import ServerProcess

LAUNCH_SECONDS, ROW_SECONDS = 0.060, 0.0025
BUDGET = 64
SMALL, LATENTS = (4, 16, 16), (4, 64, 64)
CLIENTS = 16
LARGE_DRAWS = 256
DEADLINE_SECONDS = 10.0
LOSS_CLIENTS = 8


@dataclass(frozen=True)
class Row:
    """One measured number and what it is set against."""

    measure: str
    replicas: int
    value: float
    unit: str
    efficiency: float | None = None


class Caller:
    """A client with one conditioning and one request, repeated."""

    def __init__(self, client: AsyncTeacherClient, shape: tuple[int, ...]) -> None:
        self._client = client
        self._latents = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        self._conditioning: Handle | None = None

    async def call(self, draws: int, seed: int, within: float = 60.0) -> int:
        """Evaluations spent."""
        if self._conditioning is None:
            self._conditioning = await self._client.create_conditioning(unconditional=True)
        estimate = await self._client.estimate_gradient(
            self._latents,
            self._conditioning,
            draws=draws,
            seed=seed,
            guidance_scale=1.0,
            timeout=within,
        )
        return estimate.evaluations_spent

    async def seconds(self, draws: int, seed: int) -> float:
        begun = time.perf_counter()
        await self.call(draws, seed)
        return time.perf_counter() - begun


def server(folder: Path, shape: tuple[int, ...], replicas: int) -> ServerProcess:
    describe(folder, shape)
    flags = ["--teacher", f"simulated={folder}", "--evaluation-budget", str(BUDGET)]
    flags += ["--torch-threads", "1"]
    flags += ["--replicas", "ray", "--min-replicas", str(replicas), "--cpus-per-replica", "0.25"]
    return ServerProcess(flags)


def describe(folder: Path, shape: tuple[int, ...]) -> None:
    """Write the simulated device's file."""
    content = {
        "event_shape": shape,
        "launch_seconds": LAUNCH_SECONDS,
        "row_seconds": ROW_SECONDS,
    }
    (folder / "simulated.json").write_text(json.dumps(content))


async def scaling(address: str, seconds: float) -> tuple[float, float]:
    """Evaluations a second under many clients, and seconds of one large request alone."""
    async with AsyncTeacherClient(address) as client:
        caller = Caller(client, SMALL)
        await caller.call(BUDGET, 0)
        done, begun = 0, time.perf_counter()

        async def loop(seed: int) -> None:
            nonlocal done
            while time.perf_counter() - begun < seconds:
                spent = await caller.call(BUDGET, seed)
                done += spent

        await asyncio.gather(*(loop(seed) for seed in range(CLIENTS)))
        rate = done / (time.perf_counter() - begun)
        large = [await caller.seconds(LARGE_DRAWS, seed) for seed in range(max(3, int(seconds)))]
        return rate, statistics.median(large)


async def crossing(folder: Path, calls: int) -> dict[str, tuple[float, float]]:
    """Seconds that a full microbatch of one and of eight requests takes beyond its forward, in this
    process and in an actor: medians of calls in turn."""
    config = RayConfig(cpus_per_replica=0.25)
    registration = TeacherRegistration("simulated", folder)
    cluster = open_cluster(config, teachers=1)
    settings = WorkerSettings(registration, "cpu", "float32", 1, Preparation(BUDGET))
    pool = RayPool(cluster, settings, config)
    teacher = load_simulated(folder)
    torch.set_num_threads(1)  # as the worker has; idle ones of a second would spin on its core
    found: dict[str, tuple[float, float]] = {}
    try:
        await pool.start()
        with ThreadPoolExecutor(1) as thread:
            replicas: list[Replica] = [InProcessReplica(teacher, thread, BUDGET), *pool.warm]
            for requests in (1, 8):
                beyond: list[list[float]] = [[], []]
                for seed in range(-3, calls):
                    works = microbatch(requests, abs(seed))
                    for replica, taken in zip(replicas, beyond, strict=True):
                        begun = time.perf_counter()
                        result = await replica.run(works, lambda _: True)
                        if seed >= 0:  # the first ones load code
                            taken.append(time.perf_counter() - begun - result.seconds)
                here, there = map(statistics.median, beyond)
                found[f"{requests} of {BUDGET // requests} rows"] = here, there
    finally:
        await pool.stop()
        cluster.close()
    return found


def microbatch(requests: int, seed: int) -> list[Work]:
    """As many requests, of one render, as share a full microbatch."""
    branches = [Branch([Conditioning("none", {"none": torch.tensor(0)})])]
    rng = np.random.default_rng(seed)
    return [
        make(
            seed,
            renders=1,
            draws=BUDGET // requests,
            branches=branches,
            latents=rng.standard_normal((1, *LATENTS)).astype(np.float32),
        )
        for _ in range(requests)
    ]


@dataclass(frozen=True)
class Loss:
    requests: int
    failed: int
    wrong_count: int
    slowest_seconds: float
    back_seconds: float


async def loss(running: ServerProcess, seconds: float) -> Loss:
    """Kill one of two workers under load; when is another there?"""
    requests = failed = wrong = 0
    slowest = 0.0
    async with AsyncTeacherClient(running.address) as client:
        caller = Caller(client, SMALL)
        await caller.call(BUDGET, 0)
        end = time.perf_counter() + seconds

        async def loop(seed: int) -> None:
            nonlocal requests, failed, wrong, slowest
            while time.perf_counter() < end:
                requests += 1
                begun = time.perf_counter()
                try:
                    spent = await caller.call(BUDGET, seed, DEADLINE_SECONDS)
                    wrong += spent != BUDGET
                except CarvError as error:
                    print(error, file=sys.stderr)
                    failed += 1
                slowest = max(slowest, time.perf_counter() - begun)

        load = asyncio.gather(*(loop(seed) for seed in range(LOSS_CLIENTS)))
        await asyncio.sleep(min(2.0, seconds / 3))
        worker = loaded(running)[0]
        killed = time.perf_counter()
        os.kill(worker, signal.SIGKILL)
        await asyncio.to_thread(await_loaded, running, 3)
        back = time.perf_counter() - killed
        await load
    return Loss(requests, failed, wrong, slowest, back)


def await_loaded(running: ServerProcess, workers: int) -> None:
    while len(loaded(running)) < workers:
        time.sleep(0.01)


def loaded(running: ServerProcess) -> list[int]:
    """Workers that have loaded the teacher, by the server's log."""
    return [int(pid) for pid in re.findall(r"process (\d+) on cpu has loaded it", running.log)]


def measure(seconds: float, rounds: int) -> tuple[list[Row], Loss]:
    counts = (1, 2, 4)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    larges: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(rounds):
            for count in counts:
                print(f"{count} replicas", file=sys.stderr)
                with server(folder, SMALL, count) as running:
                    rate, large = asyncio.run(scaling(running.address, seconds))
                rates[count].append(rate)
                larges[count].append(large)
        print("crossing", file=sys.stderr)
        describe(folder, LATENTS)
        crossed = asyncio.run(crossing(folder, int(4 * seconds)))
        print("loss", file=sys.stderr)
        with server(folder, SMALL, 2) as running:
            lost = asyncio.run(loss(running, 2 * seconds))
            family = descendants(running.process.pid)
        left = [pid for pid in family if alive(pid)]
        if left:
            print(f"left running: {left}", file=sys.stderr)
    ideal = BUDGET / (LAUNCH_SECONDS + BUDGET * ROW_SECONDS)
    best = {count: max(rates[count]) for count in counts}
    quickest = {count: min(larges[count]) for count in counts}
    rows = [Row("device alone", 1, ideal, "evaluations/s")]
    rows += [
        Row(f"{CLIENTS} clients", n, best[n], "evaluations/s", best[n] / (n * best[1]))
        for n in counts
    ]
    rows += [
        Row(f"one request, K = {LARGE_DRAWS}", n, quickest[n], "s", quickest[1] / (n * quickest[n]))
        for n in counts
    ]
    rows += [
        Row(f"beyond the forward, {works}, {where}", 1, 1e3 * seconds, "ms")
        for works, pair in crossed.items()
        for where, seconds in zip(("in-process", "in an actor"), pair, strict=True)
    ]
    return rows, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each cell")
    parser.add_argument("--rounds", type=int, default=2, help="repeats; the best of them counts")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--docs", type=Path, help="folder that gets ray_benchmark.md and its data")
    arguments = parser.parse_args()
    rows, lost = measure(arguments.seconds, arguments.rounds)
    lines = ["| measure | replicas | value | efficiency |", "|---|---|---|---|"]
    for row in rows:
        share = "" if row.efficiency is None else f"{row.efficiency:.3f}"
        lines.append(f"| {row.measure} | {row.replicas} | {row.value:.4g} {row.unit} | {share} |")
    lines += [
        "",
        f"SIGKILL of one of two workers under {LOSS_CLIENTS} clients: {lost.requests} requests, "
        f"{lost.failed} failed within {DEADLINE_SECONDS:g} s, {lost.wrong_count} with another "
        f"count of evaluations than asked for, the slowest {lost.slowest_seconds:.2f} s; another "
        f"worker was warm after {lost.back_seconds:.1f} s.",
        "",
        f"Simulated device: {1e3 * LAUNCH_SECONDS:g} ms a launch, {1e3 * ROW_SECONDS:g} ms a row; "
        f"{BUDGET} evaluations a microbatch; latents {list(SMALL)}, for crossing "
        f"{list(LATENTS)}. {arguments.seconds:g} s a cell, best of {arguments.rounds}; "
        f"{machine()}; `make bench-ray`.",
    ]
    write(arguments.output / "ray_scaling.md", arguments.output / "ray_scaling.csv", lines, rows)
    if arguments.docs is not None:
        page = ["# Ray replicas, measured", "", "Written by `make bench-ray`.", "", *lines]
        data = arguments.docs / "data/ray/ray_scaling.csv"
        write(arguments.docs / "ray_benchmark.md", data, page, rows)
    print("\n".join(lines))


def write(page: Path, data: Path, lines: list[str], rows: list[Row]) -> None:
    for path in (page, data):
        path.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n")
    with data.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    load = os.getloadavg()[0]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores at a load of {load:.1f} at the end, torch "
        f"{torch.__version__}, ray {version('ray')}; commit {commit}; {date.today().isoformat()}"
    )


if __name__ == "__main__":
    main()
