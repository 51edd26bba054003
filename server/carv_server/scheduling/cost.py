"""What a microbatch costs on one replica, learned from those that ran."""

from __future__ import annotations

__all__ = ["CostModel"]

_FORGETTING = 0.97
# Fewer microbatches say too little to plan by.
_LEAST_OBSERVATIONS = 8
# A stalled machine is not a slower device: one microbatch counts as this multiple at most.
_LARGEST_SURPRISE = 3.0
# Pull of the slope towards what it was, rows^2: decides where all microbatches are of one size.
_RIDGE = 1.0


class CostModel:
    """seconds(rows) = launch + rows * row, by least squares in which a microbatch counts less by
    3 % with each one after it.

    Microbatches of one size alone do not tell launch from rows: the slope then stays as it
    was. At first half of the time is taken for the launch's: whoever plans by that makes
    microbatches of other sizes, which tell. The first microbatch warms the device up and is left
    out.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._weight = self._mean_rows = self._mean_seconds = 0.0
        self._rows_rows = self._rows_seconds = 0.0
        self._row_seconds = 0.0

    @property
    def known(self) -> bool:
        """Whether enough microbatches have run to plan by."""
        return self._seen > _LEAST_OBSERVATIONS

    @property
    def row_seconds(self) -> float:
        return self._row_seconds

    @property
    def launch_seconds(self) -> float:
        return max(0.0, self._mean_seconds - self._row_seconds * self._mean_rows)

    def seconds(self, rows: int) -> float:
        return self.launch_seconds + rows * self._row_seconds

    def observe(self, rows: int, seconds: float) -> None:
        """Count one microbatch of at least one row."""
        self._seen += 1
        if self._seen == 1:
            return
        if self.known:
            seconds = min(seconds, _LARGEST_SURPRISE * self.seconds(rows))
        if self._weight == 0.0:
            self._row_seconds = 0.5 * seconds / rows
        self._weight = _FORGETTING * self._weight + 1.0
        delta_rows, delta_seconds = rows - self._mean_rows, seconds - self._mean_seconds
        self._mean_rows += delta_rows / self._weight
        self._mean_seconds += delta_seconds / self._weight
        off = rows - self._mean_rows
        self._rows_rows = _FORGETTING * self._rows_rows + delta_rows * off
        self._rows_seconds = _FORGETTING * self._rows_seconds + delta_seconds * off
        slope = (self._rows_seconds + _RIDGE * self._row_seconds) / (self._rows_rows + _RIDGE)
        self._row_seconds = min(max(0.0, slope), self._mean_seconds / self._mean_rows)
