"""The microbatch size, by measuring: evaluations a second against rows in a forward."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from carv_server.host import undisturbed_seconds
from carv_server.replicas.forward import Forward
from carv_server.replicas.probe import probe_conditionings, probe_work
from carv_server.teachers.protocol import Teacher

__all__ = ["MemoryUse", "Tuning", "choose_rows", "device_memory", "tune_rows"]

_MOST_ROWS = 512
_SECONDS = 4.0
_REPEATS = 8
_SHARE_OF_SECONDS = 0.1  # after which a size is not repeated
# A microbatch is what a short request may have to wait for: the smallest that is nearly as fast.
_TOLERANCE = 0.05
_SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Tuning:
    """What was measured.

    Attributes:
        rows: the microbatch size, in evaluations.
        rates: evaluations a second by size.
        ended_by: why no larger size was tried.
    """

    rows: int
    rates: Mapping[int, float]
    ended_by: str


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that the process has used at most so far, and the bound for that."""

    peak: Callable[[], int]
    bound: int


def tune_rows(
    teacher: Teacher,
    *,
    seconds: float = _SECONDS,
    most: int = _MOST_ROWS,
    memory: MemoryUse | None = None,
    clock: Callable[[], float] = undisturbed_seconds,
) -> Tuning:
    """Time whole microbatches (noise, teacher, sums) of 1, 2, 4, ... rows: each once to warm up,
    then the best of a few.

    Args:
        seconds: of forwards, compilation apart; no size is begun that is expected to take
            longer. One row is always measured.
        memory: sizes expected to exceed its bound are not tried; None asks the device.

    Raises:
        Exception: what the teacher raised at a single row.
    """
    memory = memory or device_memory(teacher.device)
    (conditioning, *_) = probe_conditionings(teacher)
    base, spent = memory.peak(), 0.0
    rates: dict[int, float] = {}
    rows, took, ended_by = 1, 0.0, f"{most} rows are the most"
    while rows <= most:
        # Twice the rows take at most about twice the time and twice the memory.
        if rates and spent + 2 * (2 * took) > seconds:
            ended_by = f"{seconds:g} s are the most"
            break
        if base + 2 * (memory.peak() - base) > memory.bound:
            ended_by = f"{memory.bound >> 20} MiB of memory are the most"
            break
        forward = Forward(teacher, rows)
        work = probe_work(teacher, [conditioning], rows)
        best = float("inf")
        forward.evaluate([work])  # may compile: not counted at its own length
        begun = clock()
        for _ in range(_REPEATS):
            before = clock()
            forward.evaluate([work])
            took = clock() - before
            best = min(best, took)
            if clock() - begun > _SHARE_OF_SECONDS * seconds:
                break
        spent += clock() - begun + took
        if forward.limit.most != rows:
            ended_by = f"the device is out of memory at {rows} rows"
            break
        rates[rows] = rows / best
        if rows >= 4 and max(rates[rows], rates[rows // 2]) < (1 - _TOLERANCE) * max(
            rates.values()
        ):
            ended_by = "more rows are slower"
            break
        rows *= 2
    return Tuning(choose_rows(rates), rates, ended_by)


def choose_rows(rates: Mapping[int, float], tolerance: float = _TOLERANCE) -> int:
    """The smallest size whose rate is within the tolerance of the best."""
    best = max(rates.values())
    return min(rows for rows, rate in rates.items() if rate >= (1 - tolerance) * best)


def device_memory(device: torch.device) -> MemoryUse:
    """Torch's own memory on a CUDA device, the process's elsewhere; bound by most of what is
    free now on top of it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        return MemoryUse(
            lambda: torch.cuda.max_memory_allocated(device), int(_SHARE_OF_MEMORY * (free + held))
        )

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return MemoryUse(peak, peak() + int(_SHARE_OF_MEMORY * _available_bytes()))


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
