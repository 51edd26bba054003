"""One request's rows on their way through the scheduler: cut into works, merged from results."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from carv_server.replicas.protocol import Work, WorkResult
from carv_server.sampling.reduce import Reduction, merge_reductions

__all__ = ["Job", "JobResult"]


@dataclass(frozen=True)
class JobResult:
    """All of a request's draws, evaluated.

    Attributes:
        reduction: over all draws; None where predictions were kept.
        residuals: float64 [n, 3] in the order of the job's draws, as ``WorkResult``; or None.
        predictions: float32 [n, *event_shape] in the order of the job's draws, or None.
        queue_seconds: from submission to the first forward.
        compute_seconds: this job's share, by evaluations, of the forwards it was in.
    """

    reduction: Reduction | None
    residuals: torch.Tensor | None
    predictions: torch.Tensor | None
    queue_seconds: float
    compute_seconds: float


class Job:
    """A request's draws, cut between cells only.

    Args:
        work: all draws of the request, the draws of a cell contiguous.
        submitted: clock reading at submission.
        deadline: clock reading after which the work must not reach the teacher, or None.
    """

    def __init__(self, work: Work, *, submitted: float, deadline: float | None) -> None:
        self._work = work
        self.submitted = submitted
        self.deadline = deadline
        self.done: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()
        keys = np.stack([work.renders.numpy(), work.cells.numpy()])
        changes = np.flatnonzero(np.any(keys[:, 1:] != keys[:, :-1], axis=0)) + 1
        self._bounds: list[int] = [0, *changes.tolist(), keys.shape[1]]
        self._next = 0
        self._unfinished = len(self._bounds) - 1
        self._reductions: list[Reduction] = []
        self._residuals: dict[int, torch.Tensor] = {}
        self._predictions: dict[int, torch.Tensor] = {}
        self._started: float | None = None
        self._compute_seconds = 0.0
        self.signature = tuple(
            sorted({c.signature for branch in work.branches for c in branch.conditionings})
        )

    @property
    def waiting_evaluations(self) -> int:
        """Evaluations that no microbatch has taken yet."""
        return (self._bounds[-1] - self._bounds[self._next]) * len(self._work.branches)

    @property
    def over(self) -> bool:
        """Answered, failed or abandoned: nothing of it needs computing."""
        return self.done.done()

    def waiting_costs(self, most: int) -> list[int]:
        """Evaluations of each of the next cells, at most so many cells."""
        bounds = self._bounds[self._next : self._next + most + 1]
        return [(b - a) * len(self._work.branches) for a, b in pairwise(bounds)]

    def take(self, cells: int, *, now: float) -> tuple[range, Work]:
        """Cut off the next cells, at least one."""
        first, last = self._next, self._next + cells
        self._next = last
        if self._started is None:
            self._started = now
        return range(first, last), self._cut(self._bounds[first], self._bounds[last])

    def deliver(self, cells: range, result: WorkResult, seconds: float) -> None:
        """Merge one work's result; the last one answers the job."""
        if self.over:
            return
        self._compute_seconds += seconds
        if result.reduction is not None:
            self._reductions.append(result.reduction)
        if result.residuals is not None:
            self._residuals[cells.start] = result.residuals
        if result.predictions is not None:
            self._predictions[cells.start] = result.predictions
        self._unfinished -= len(cells)
        if self._unfinished == 0:
            self.done.set_result(self._result())

    def fail(self, error: Exception) -> None:
        if not self.over:
            self.done.set_exception(error)

    def _cut(self, start: int, stop: int) -> Work:
        if (start, stop) == (0, len(self._work.renders)):
            return self._work
        rows = slice(start, stop)
        work = self._work
        return replace(
            work,
            renders=work.renders[rows],
            timesteps=work.timesteps[rows],
            noise_indices=work.noise_indices[rows],
            groups=work.groups[rows],
            cells=work.cells[rows],
            streams=None if work.streams is None else work.streams[rows],
            signs=work.signs[rows],
            scales=work.scales[rows],
            branch_coefficients=work.branch_coefficients[:, rows],
            noise_coefficients=work.noise_coefficients[rows],
            control_coefficients=work.control_coefficients[rows],
        )

    def _result(self) -> JobResult:
        started = self.submitted if self._started is None else self._started
        return JobResult(
            merge_reductions(self._reductions) if self._reductions else None,
            _in_order(self._residuals),
            _in_order(self._predictions),
            started - self.submitted,
            self._compute_seconds,
        )


def _in_order(parts: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
    """Parts by their first cell, joined; None where there are none."""
    return torch.cat([part for _, part in sorted(parts.items())]) if parts else None
