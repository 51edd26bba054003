"""What pipelining brings: steps a second of a loop that submits, over one that waits.

    python -m benchmarks.pipelined                # 5 rounds of 4 s a row

Each step renders, asks for a gradient, and descends one: the blocking loop its own, the pipelined
one that of the step before. The teacher is simulated, 30 ms a forward; a render takes as long as a
blocking request was measured to take, so at most twice the steps are to be had. It sleeps, as the
CPU does while a renderer's GPU works, or computes in numpy on the cores that the server shares.
Loops alternate in one run. Writes out/bench/pipelined.md and pipelined.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import date
from pathlib import Path

import numpy as np

from carv_client import Estimate, TeacherClient
from tests.support.process import ServerProcess

EVENT_SHAPE = (4, 64, 64)
LAUNCH_SECONDS = 0.03
DRAWS = 8
WARM_UP = 20

Render = Callable[[float], None]


def sleeping(seconds: float) -> None:
    time.sleep(seconds)


def computing(seconds: float) -> None:
    matrix = np.eye(96, dtype=np.float32)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix = matrix @ matrix


def steps_a_second(
    client: TeacherClient, render: Render, render_seconds: float, delay: int, seconds: float
) -> float:
    """``delay``: how many steps late a gradient is used; 0 waits for it."""
    latents = np.random.default_rng(0).normal(size=(1, *EVENT_SHAPE)).astype(np.float32)
    in_flight: list[Future[Estimate]] = []
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        render(render_seconds)
        if delay:
            in_flight.append(client.submit(latents, draws=DRAWS, seed=steps))
            late = in_flight.pop(0) if len(in_flight) > delay else None
            estimate = None if late is None else late.result()
        else:
            estimate = client.estimate_gradient(latents, draws=DRAWS, seed=steps)
        if estimate is not None:
            latents -= 1e-3 * estimate.gradient
        steps += 1
    for coming in in_flight:
        coming.result()
    return steps / (time.perf_counter() - start)


def request_seconds(client: TeacherClient) -> float:
    """Median of a blocking request."""
    latents = np.zeros((1, *EVENT_SHAPE), np.float32)
    times: list[float] = []
    for seed in range(2 * WARM_UP):
        start = time.perf_counter()
        client.estimate_gradient(latents, draws=DRAWS, seed=seed)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        timing = {"event_shape": EVENT_SHAPE, "launch_seconds": LAUNCH_SECONDS, "row_seconds": 0.0}
        (Path(folder) / "simulated.json").write_text(json.dumps(timing))
        flags = ["--teacher", f"simulated={folder}", "--torch-threads", "1"]
        with ServerProcess(flags) as server, TeacherClient(server.address) as client:
            for render in (sleeping, computing):
                gains: list[float] = []
                rates: list[tuple[float, float]] = []
                for _ in range(arguments.rounds):
                    each = request_seconds(client)
                    blocking, pipelined = (
                        steps_a_second(client, render, each, delay, arguments.seconds)
                        for delay in (0, 1)
                    )
                    gains.append(pipelined / blocking)
                    rates.append((blocking, pipelined))
                middle = sorted(range(len(gains)), key=gains.__getitem__)[len(gains) // 2]
                rows.append(
                    {
                        "render": render.__name__,
                        "blocking": rates[middle][0],
                        "pipelined": rates[middle][1],
                        "gain": gains[middle],
                        "least": min(gains),
                        "most": max(gains),
                    }
                )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = [
        "| render | blocking, steps/s | pipelined | gain, median (least, most) |",
        "|---|---|---|---|",
        *(
            f"| {row['render']} | {row['blocking']:.1f} | {row['pipelined']:.1f} | "
            f"**{row['gain']:.2f}** ({row['least']:.2f}, {row['most']:.2f}) |"
            for row in rows
        ),
        "",
        f"`python -m benchmarks.pipelined`: {arguments.rounds} rounds of {arguments.seconds:g} s, "
        f"{1000 * LAUNCH_SECONDS:g} ms a forward; {platform.machine()}, {os.cpu_count()} cores; "
        f"commit {commit}; {date.today().isoformat()}.",
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "pipelined.md").write_text("\n".join(lines) + "\n")
    (arguments.output / "pipelined.json").write_text(json.dumps(rows, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
