"""What one forward holds, while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from carv_server.scheduling.job import Job, Slice

__all__ = ["Microbatch"]


@dataclass(eq=False)
class Microbatch:
    """Slices of jobs, handed to a replica.

    Attributes:
        cells: of each job in it.
        handed: clock reading.
        end: clock reading when the forward should be over.
        alone: whether the device was idle when it was handed over.
        held_seconds: that it waited on an idle device for more requests.
    """

    slices: Sequence[Slice]
    evaluations: int
    cells: dict[Job, int]
    handed: float
    end: float
    alone: bool
    held_seconds: float

    def answers(self) -> list[Job]:
        """Jobs that are done once it is."""
        return [job for job, cells in self.cells.items() if job.ends_with(cells) and not job.over]

    def waits(self) -> dict[Job, float]:
        """Of the jobs that it is the first microbatch of: seconds since submission."""
        handed = self.handed
        return {job: handed - job.submitted for job in self.cells if job.started == handed}
