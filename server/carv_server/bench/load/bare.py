"""The model alone, in a process of its own: rows a second of its forward, batched, with nothing in
front of it. What every server is measured against.

    python -m carv_server.bench.load.bare < bare.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Bare", "BareFailed", "Forwards", "best_rate", "measure_bare"]

_SWEEP_SHARE = 0.3


class BareFailed(RuntimeError):
    """The process ended without a result; the message holds its last words."""


@dataclass(frozen=True)
class Bare:
    """What to measure: a teacher's folder as the server loads it, or the work of the peers.

    Attributes:
        teacher: folder, or empty.
        prompt: conditions every row; None is the unconditional input.
        work: JSON of ``peers.scripts.work``, or empty.
        sizes: batch sizes to try.
        seconds: of the best one; as long again, times 0.3, is spent on finding it.
    """

    sizes: Sequence[int]
    seconds: float
    teacher: str = ""
    prompt: str | None = None
    work: str = ""


@dataclass(frozen=True)
class Forwards:
    """The best batch size, its rows a second, and the mean seconds of its forward."""

    size: int
    rows_per_second: float

    @property
    def seconds(self) -> float:
        return self.size / self.rows_per_second


def measure_bare(bare: Bare) -> Forwards:
    """In a process of its own.

    Raises:
        BareFailed: it ended without a result.
    """
    done = subprocess.run(
        [sys.executable, "-m", "carv_server.bench.load.bare"],
        input=json.dumps(asdict(bare)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BareFailed(f"the bare model failed: {done.stderr.strip()[-1500:]}")
    return Forwards(**json.loads(done.stdout.splitlines()[-1]))


def best_rate(forward: Callable[[int], object], sizes: Sequence[int], seconds: float) -> Forwards:
    """Tries every batch size for a while, then measures the best one.

    Args:
        forward: one forward of so many rows.
    """
    tried: dict[int, float] = {}
    for size in sizes:
        forward(size)
        tried[size] = _rate(forward, size, _SWEEP_SHARE * seconds / len(sizes))
    best = max(tried, key=lambda size: tried[size])
    return Forwards(best, _rate(forward, best, seconds))


def _rate(forward: Callable[[int], object], size: int, seconds: float) -> float:
    rows, start = 0, time.perf_counter()
    while rows == 0 or time.perf_counter() - start < seconds:
        forward(size)
        rows += size
    return rows / (time.perf_counter() - start)


def _forward_of_work(text: str) -> Callable[[int], object]:
    import numpy as np

    from carv_server.bench.peers.scripts.work import load_work

    work = load_work(text)
    rng = np.random.default_rng(0)

    def forward(size: int) -> object:
        return work.predict(rows[:size], timesteps[:size])

    rows = rng.normal(size=(work.max_batch, *work.event_shape)).astype(np.float32)
    timesteps = rng.integers(20, 980, size=work.max_batch)
    return forward


def _forward_of_teacher(folder: str, prompt: str | None, most: int) -> Callable[[int], object]:
    from pathlib import Path

    import torch

    from carv_server.teachers.protocol import Prompts, Unconditional
    from carv_server.teachers.registry import TeacherRegistration, load_teacher

    torch.set_num_threads(1)
    teacher = load_teacher(
        TeacherRegistration("bare", Path(folder)), device=torch.device("cpu"), dtype=torch.float32
    )
    row = teacher.encode(Unconditional() if prompt is None else Prompts((prompt,)))[0]
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(most, *teacher.description.event_shape, generator=generator)
    timesteps = torch.linspace(20, 980, most).long()

    def forward(size: int) -> object:
        conditioning = {name: value.expand(size, *value.shape) for name, value in row.items()}
        return teacher.predict_noise(z_t[:size], timesteps[:size], conditioning)

    return forward


def main() -> int:
    stated: dict[str, Any] = json.load(sys.stdin)
    bare = Bare(**stated)
    forward = (
        _forward_of_work(bare.work)
        if bare.work
        else _forward_of_teacher(bare.teacher, bare.prompt, max(bare.sizes))
    )
    print(json.dumps(asdict(best_rate(forward, bare.sizes, bare.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
