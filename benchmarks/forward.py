"""What a replica adds to its teacher: microbatches of one-row requests, evaluated together and one
by one, on a teacher that takes no time; the noise alone; and the embedded teacher's own rate.

    .venv/bin/python benchmarks/forward.py

Processor time of one thread, the best of many: steadier than a clock on a machine that is shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from carv_server.host import keep_freed_memory
from carv_server.replicas.forward import Forward
from carv_server.replicas.probe import probe_conditionings, probe_work
from carv_server.sampling.noise import draw_noise
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registry import EMBEDDED, load_teacher
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher

EVENT_SHAPE = (4, 64, 64)
WORKS = (1, 8, 16, 64)
ROWS = (1, 16, 64)
SECONDS = 2.0


def best(function: Callable[[], object]) -> float:
    """Least processor time of a call, seconds."""
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        before = time.thread_time()
        function()
        least = min(least, time.thread_time() - before)
    return least


def together(count: int) -> None:
    teacher = SimulatedTeacher(EVENT_SHAPE, DeviceTiming(0.0, 0.0))
    forward, conditionings = Forward(teacher), probe_conditionings(teacher)
    works = [probe_work(teacher, conditionings, 1, seed) for seed in range(count)]
    seeds = torch.tensor([[seed, 0] for seed in range(count)])
    zeros = torch.zeros(count, dtype=torch.int64)
    columns = (
        best(lambda: forward.evaluate(works)),
        best(lambda: [forward.evaluate([work]) for work in works]),
        best(lambda: draw_noise(seeds, zeros, zeros, EVENT_SHAPE)),
    )
    print(
        f"| {count} | " + " | ".join(f"{1e3 * c / count:.2f}" for c in columns) + " |", flush=True
    )


def rates(dtype: torch.dtype) -> str:
    """Evaluations a second by rows."""
    teacher: Teacher = load_teacher(EMBEDDED, device=torch.device("cpu"), dtype=dtype)
    row = probe_conditionings(teacher)[0].tensors

    def rate(rows: int) -> float:
        z = torch.randn(rows, *teacher.description.event_shape)
        t = torch.linspace(20, 980, rows).long()
        conditioning = {name: tensor.expand(rows, *tensor.shape) for name, tensor in row.items()}
        return rows / best(lambda: teacher.predict_noise(z, t, conditioning))

    return " | ".join(f"{rate(rows):.0f}" for rows in ROWS)


def main() -> None:
    torch.set_num_threads(1)
    print(f"malloc's defaults, float32, rows {ROWS}: {rates(torch.float32)}", flush=True)
    keep_freed_memory()
    for dtype in (torch.float32, torch.bfloat16):
        print(f"memory kept, {dtype}, rows {ROWS}: {rates(dtype)}", flush=True)
    print("\n| works | together, ms a work | one by one | the noise alone |\n|---|---|---|---|")
    for count in WORKS:
        together(count)


if __name__ == "__main__":
    main()
