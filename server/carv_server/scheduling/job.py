"""One request's rows on their way through the scheduler: cut into works, merged from results."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from carv_server.replicas.protocol import Work, WorkResult
from carv_server.sampling.reduce import Reduction, merge_reductions
from carv_server.scheduling.terms import Terms

__all__ = ["Job", "JobResult", "Slice"]

T = TypeVar("T", bound=np.generic)

# A request without a deadline is ordered as if it had this one: those with deadlines cannot keep
# passing it.
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class JobResult:
    """All of a request's draws, evaluated.

    Attributes:
        reduction: over all draws; None where predictions were kept.
        residuals: float64 [n, 3] in the order of the job's draws, as ``WorkResult``; or None.
        predictions: float32 [n, *event_shape] in the order of the job's draws, or None.
        queue_seconds: from submission to the first microbatch.
        compute_seconds: this job's share, by evaluations, of the forwards it was in.
    """

    reduction: Reduction | None
    residuals: npt.NDArray[np.float64] | None
    predictions: npt.NDArray[np.float32] | None
    queue_seconds: float
    compute_seconds: float


class Slice(NamedTuple):
    """Some neighbouring cells of a job in a microbatch; ``attempts`` counts this one."""

    job: Job
    cells: range
    work: Work
    attempts: int


class _Piece(NamedTuple):
    """Neighbouring cells that wait, and how often a replica was lost with them."""

    first: int
    last: int
    attempts: int


class Job:
    """A request's draws, cut between cells only.

    Args:
        work: all draws of the request, the draws of a cell contiguous; its conditionings share one
            signature.
        submitted: clock reading at submission.
        done: resolved with the result, or the failure.
    """

    def __init__(
        self, work: Work, terms: Terms, *, submitted: float, done: asyncio.Future[JobResult]
    ) -> None:
        self._work = work
        self._branches = len(work.branches)
        self.terms = terms
        self.submitted = submitted
        self.done = done
        deadline = terms.deadline
        self.due = submitted + _PATIENCE_SECONDS if deadline is None else deadline
        self._bounds = _cell_bounds(work)
        cells = len(self._bounds) - 1
        self._pieces = [_Piece(0, cells, 0)]
        self._unfinished = cells
        self.waiting_cells = cells
        self.waiting_evaluations = self.undelivered_evaluations = work.evaluations
        self._reduction: Reduction | None = None
        self._residuals: dict[int, npt.NDArray[np.float64]] = {}
        self._predictions: dict[int, npt.NDArray[np.float32]] = {}
        self._started: float | None = None
        self._compute_seconds = 0.0
        self.signature: Hashable = work.branches[0].conditionings[0].signature

    @property
    def tenant(self) -> str:
        return self.terms.tenant

    @property
    def priority(self) -> int:
        return self.terms.priority

    @property
    def started(self) -> float | None:
        """Clock reading when the first microbatch took some of it."""
        return self._started

    @property
    def over(self) -> bool:
        """Answered, failed or abandoned: nothing of it needs computing."""
        return self.done.done()

    def wanted(self, now: float) -> bool:
        """Whether a forward may still be spent on it. Called in any thread."""
        deadline = self.terms.deadline
        return not self.over and (deadline is None or deadline > now)

    def cell_cost(self, index: int) -> int:
        """Evaluations of one of the waiting cells."""
        bounds = self._bounds
        for first, last, _ in self._pieces:
            if index < last - first:
                return (bounds[first + index + 1] - bounds[first + index]) * self._branches
            index -= last - first
        raise IndexError("so many cells do not wait")

    def take(self, cells: int, *, now: float) -> list[Slice]:
        """Cut off the next cells: one slice, or several where some of them came back."""
        if self._started is None:
            self._started = now
        slices: list[Slice] = []
        while cells > 0:
            first, end, attempts = self._pieces.pop(0)
            last = min(end, first + cells)
            if last < end:
                self._pieces.insert(0, _Piece(last, end, attempts))
            work = self._cut(self._bounds[first], self._bounds[last])
            self.waiting_evaluations -= work.evaluations
            self.waiting_cells -= last - first
            cells -= last - first
            slices.append(Slice(self, range(first, last), work, attempts + 1))
        return slices

    def give_back(self, item: Slice) -> None:
        """Cells that were lost with a replica wait again, ahead of those after them."""
        cells = item.cells
        self._pieces.append(_Piece(cells.start, cells.stop, item.attempts))
        self._pieces.sort()
        self.waiting_cells += len(cells)
        self.waiting_evaluations += item.work.evaluations

    def isolate(self) -> None:
        """Share no microbatch from now on. Not while it is in a queue."""
        self.signature = object()

    def ends_with(self, cells: int) -> bool:
        """Whether so many cells are all that is left to deliver."""
        return self._unfinished == cells

    def deliver(self, cells: range, result: WorkResult, seconds: float) -> None:
        """Merge one work's result; the last one answers the job."""
        if self.over:
            return
        self._compute_seconds += seconds
        if result.reduction is not None:
            # At once: a long request has thousands of parts, each as large as its gradient.
            kept = self._reduction
            parts = [result.reduction] if kept is None else [kept, result.reduction]
            self._reduction = parts[0] if kept is None else merge_reductions(parts)
        if result.residuals is not None:
            self._residuals[cells.start] = result.residuals
        if result.predictions is not None:
            self._predictions[cells.start] = result.predictions
        self._unfinished -= len(cells)
        self.undelivered_evaluations -= self._evaluations(cells)
        if self._unfinished == 0:
            self.done.set_result(self._result())

    def _evaluations(self, cells: range) -> int:
        return (self._bounds[cells.stop] - self._bounds[cells.start]) * self._branches

    def fail(self, error: Exception) -> None:
        if not self.over:
            self.done.set_exception(error)

    def _cut(self, start: int, stop: int) -> Work:
        work = self._work
        if (start, stop) == (0, self._bounds[-1]):
            return work
        rows = slice(start, stop)
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
        return JobResult(
            self._reduction,
            _in_order(self._residuals),
            _in_order(self._predictions),
            0.0 if self._started is None else self._started - self.submitted,
            self._compute_seconds,
        )


def _cell_bounds(work: Work) -> list[int]:
    """Where cells begin, and the end."""
    draws = len(work.renders)
    if draws == 1:
        return [0, 1]
    renders, cells = work.renders, work.cells
    changes = (renders[1:] != renders[:-1]) | (cells[1:] != cells[:-1])
    return [0, *(np.flatnonzero(changes) + 1).tolist(), draws]


def _in_order(parts: Mapping[int, npt.NDArray[T]]) -> npt.NDArray[T] | None:
    """Parts by their first cell, joined; None where there are none."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return np.concatenate([parts[start] for start in sorted(parts)]) if parts else None
