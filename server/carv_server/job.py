"""One request's rows on their way through the scheduler: cut into works, merged from results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from carv_server.replicas.protocol import Work, WorkResult
from carv_server.sampling.reduce import Moments, merge_moments

__all__ = ["Job", "JobResult"]


@dataclass(frozen=True)
class JobResult:
    """All of a request's draws, evaluated.

    Attributes:
        moments: per (render, group size).
        predictions: float32 [n, *event_shape] in the order of the job's draws, or None.
        queue_seconds: from submission to the first forward.
        compute_seconds: this job's share, by evaluations, of the forwards it was in.
    """

    moments: dict[tuple[int, int], Moments]
    predictions: torch.Tensor | None
    queue_seconds: float
    compute_seconds: float


class Job:
    """A request's draws, grouped so that a group is never cut.

    Args:
        work: all draws of the request, groups contiguous.
        submitted: clock reading at submission.
        deadline: clock reading after which the work must not reach the teacher, or None.
    """

    def __init__(self, work: Work, *, submitted: float, deadline: float | None) -> None:
        self._work = work
        self.submitted = submitted
        self.deadline = deadline
        self.done: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()
        keys = np.stack([work.renders.numpy(), work.groups.numpy()])
        changes = np.flatnonzero(np.any(keys[:, 1:] != keys[:, :-1], axis=0)) + 1
        self._bounds: list[int] = [0, *changes.tolist(), keys.shape[1]]
        self._next = 0
        self._unfinished = len(self._bounds) - 1
        self._parts: dict[tuple[int, int], list[Moments]] = {}
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
        """Evaluations of each of the next groups, at most so many groups."""
        bounds = self._bounds[self._next : self._next + most + 1]
        return [(b - a) * len(self._work.branches) for a, b in pairwise(bounds)]

    def take(self, groups: int, *, now: float) -> tuple[range, Work]:
        """Cut off the next groups, at least one."""
        first, last = self._next, self._next + groups
        self._next = last
        if self._started is None:
            self._started = now
        return range(first, last), self._cut(self._bounds[first], self._bounds[last])

    def deliver(self, groups: range, result: WorkResult, seconds: float) -> None:
        """Merge one work's result; the last one answers the job."""
        if self.over:
            return
        self._compute_seconds += seconds
        for key, moments in (result.moments or {}).items():
            self._parts.setdefault(key, []).append(moments)
        if result.predictions is not None:
            self._predictions[groups.start] = result.predictions
        self._unfinished -= len(groups)
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
            signs=work.signs[rows],
            scales=work.scales[rows],
            branch_coefficients=work.branch_coefficients[:, rows],
            noise_coefficients=work.noise_coefficients[rows],
        )

    def _result(self) -> JobResult:
        parts: Sequence[torch.Tensor] = [part for _, part in sorted(self._predictions.items())]
        started = self.submitted if self._started is None else self._started
        return JobResult(
            {key: merge_moments(moments) for key, moments in self._parts.items()},
            torch.cat(tuple(parts)) if parts else None,
            started - self.submitted,
            self._compute_seconds,
        )
