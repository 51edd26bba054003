"""What the service costs over the bare model: evaluations a second through gRPC, as a share of the
teacher's own forward at the server's microbatch size, in one run on one machine.

    make bench                      # 10 s a row
    make bench ARGS="--seconds 3"

Writes out/bench/serving.md and serving.json. Ratios carry over between machines; rates do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import grpc.aio
import numpy as np
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carv_client import AsyncTeacherClient, Conditioning
from carv_server.teachers.protocol import Prompts
from carv_server.teachers.registry import EMBEDDED, load_teacher
from tests.support.process import ServerProcess

DRAWS = 8
BRANCHES = 2
EVALUATION_BUDGET = 64
CLIENTS = (1, 4, 16)


def bare_rate(seconds: float) -> float:
    """Evaluations a second of the teacher alone, one thread, full microbatches."""
    torch.set_num_threads(1)
    teacher = load_teacher(EMBEDDED, device=torch.device("cpu"), dtype=torch.float32)
    description = teacher.description
    rows = teacher.encode(Prompts(("a red torus",)))[0]
    conditioning = {
        name: tensor.expand(EVALUATION_BUDGET, *tensor.shape) for name, tensor in rows.items()
    }
    z_t = torch.randn(
        EVALUATION_BUDGET, *description.event_shape, generator=torch.Generator().manual_seed(0)
    )
    timesteps = torch.linspace(20, 980, EVALUATION_BUDGET).long()
    teacher.predict_noise(z_t, timesteps, conditioning)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        teacher.predict_noise(z_t, timesteps, conditioning)
        done += EVALUATION_BUDGET
    return done / (time.perf_counter() - start)


async def served_rate(address: str, clients: int, seconds: float) -> tuple[float, float]:
    """Evaluations a second over concurrent callers, and the slowest health check meanwhile."""
    async with AsyncTeacherClient(address) as client, grpc.aio.insecure_channel(address) as channel:
        teacher = await client.get_teacher()
        conditioning = await client.create_conditioning("a red torus")
        assert isinstance(conditioning, Conditioning)
        latents = np.random.default_rng(0).normal(size=(1, *teacher.event_shape))
        health = health_pb2_grpc.HealthStub(channel)
        end = time.perf_counter() + seconds
        slowest = 0.0

        async def call(seed: int) -> int:
            evaluations = 0
            while time.perf_counter() < end:
                estimate = await client.estimate_gradient(
                    latents.astype(np.float32), conditioning, draws=DRAWS, seed=seed
                )
                evaluations += estimate.evaluations_spent
            return evaluations

        async def watch() -> None:
            nonlocal slowest
            while time.perf_counter() < end:
                asked = time.perf_counter()
                await health.Check(health_pb2.HealthCheckRequest())
                slowest = max(slowest, time.perf_counter() - asked)
                await asyncio.sleep(0.05)

        start = time.perf_counter()
        *counts, _ = await asyncio.gather(*(call(seed) for seed in range(clients)), watch())
        return sum(count or 0 for count in counts) / (time.perf_counter() - start), slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each row")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    bare = bare_rate(arguments.seconds)
    lines = [
        "| clients | share of the bare model | slowest health check |",
        "|---|---|---|",
    ]
    rows: list[dict[str, float]] = []
    flags = ["--torch-threads", "1", "--evaluation-budget", str(EVALUATION_BUDGET)]
    with ServerProcess(flags) as server:
        for clients in CLIENTS:
            print(f"{clients} clients, {arguments.seconds:.0f} s", file=sys.stderr)
            rate, slowest = asyncio.run(served_rate(server.address, clients, arguments.seconds))
            rows.append({"clients": clients, "share": rate / bare, "health_seconds": slowest})
            lines.append(f"| {clients} | {rate / bare:.2f} | {1000 * slowest:.0f} ms |")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    lines += [
        "",
        f"R = 1, K = {DRAWS}, {BRANCHES} branches a request; {arguments.seconds:.0f} s a row; "
        f"{machine}; commit {commit}; {date.today().isoformat()}; `make bench`.",
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "serving.md").write_text("\n".join(lines) + "\n")
    (arguments.output / "serving.json").write_text(json.dumps(rows, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
