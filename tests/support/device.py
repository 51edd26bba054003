"""A replica with a device's timing and no arithmetic, and requests for it: scheduling apart from
everything else, for ``run_virtually``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from carv_server.replicas.protocol import (
    Branch,
    Conditioning,
    MicrobatchResult,
    ReplicaLost,
    Wanted,
    Work,
    WorkResult,
)
from carv_server.teachers.protocol import Source, TeacherDescription, Tensors
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher

__all__ = ["Forward", "TimedReplica", "work_of"]

_LABEL = Conditioning("none", {"none": torch.tensor(0)})
_OTHER = Conditioning("other", {"other": torch.tensor([0, 0])})


@dataclass(frozen=True)
class Forward:
    """One that ran: when, and the rows of each work as (seed, first noise index, rows)."""

    begin: float
    end: float
    works: tuple[tuple[int, int, int], ...]

    @property
    def rows(self) -> int:
        return sum(rows for _, _, rows in self.works)

    def rows_of(self, seed: int) -> int:
        return sum(rows for found, _, rows in self.works if found == seed)


@dataclass(eq=False)
class TimedReplica:
    """Microbatches take ``timing`` on the device, one at a time, and ``transit_seconds`` on the way
    there and again on the way back.

    Attributes:
        lose_at: the process dies at that reading of the loop's clock, with what it runs.
        forwards: those that ran to their end.
    """

    timing: DeviceTiming
    in_flight: int = 2
    transit_seconds: float = 0.0
    lose_at: float | None = None
    device: str = "cpu"
    forwards: list[Forward] = field(default_factory=list[Forward])
    _device: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def description(self) -> TeacherDescription:
        return SimulatedTeacher((1,), self.timing).description

    async def encode(self, source: Source) -> Sequence[Tensors]:
        return [_LABEL.tensors]

    async def run(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        await self._sleep(self.transit_seconds)
        async with self._device:
            kept = [index for index in range(len(works)) if wanted(index)]
            rows = sum(works[index].evaluations for index in kept)
            seconds = self.timing.seconds(rows) if rows else 0.0
            begin = asyncio.get_running_loop().time()
            await self._sleep(seconds)
            if rows:
                self.forwards.append(
                    Forward(begin, begin + seconds, tuple(_described(works[i]) for i in kept))
                )
        await self._sleep(self.transit_seconds)
        results: list[WorkResult | None] = [None] * len(works)
        for index in kept:
            # What was evaluated comes back as its predictions, so that tests can count it.
            work = works[index]
            counted = work.noise_indices.astype(np.float32).reshape(-1, 1)
            results[index] = WorkResult(predictions=counted)
        return MicrobatchResult(results, seconds)

    async def _sleep(self, seconds: float) -> None:
        left = None
        if self.lose_at is not None:
            left = self.lose_at - asyncio.get_running_loop().time()
            if left <= seconds:
                await asyncio.sleep(max(0.0, left))
                raise ReplicaLost("killed")
        await asyncio.sleep(seconds)


def _described(work: Work) -> tuple[int, int, int]:
    return work.seed, int(work.noise_indices[0]), len(work.renders)


def work_of(rows: int, seed: int = 0, *, cell: int = 1, other_signature: bool = False) -> Work:
    """One render, one branch; ``cell`` draws to a cell. ``seed`` tells it from others."""
    zeros, indices = np.zeros(rows, dtype=np.int64), np.arange(rows)
    ones = np.ones(rows, dtype=np.float32)
    return Work(
        seed=seed,
        latents=np.zeros((1, 1), dtype=np.float32),
        reference_latents=None,
        branches=[Branch([_OTHER if other_signature else _LABEL])],
        renders=zeros,
        timesteps=zeros,
        noise_indices=indices,
        groups=indices,
        cells=indices // cell,
        signs=ones,
        scales=ones,
        branch_coefficients=ones[np.newaxis],
        noise_coefficients=0.0 * ones,
        control_coefficients=0.0 * ones,
        keep_predictions=True,
    )
