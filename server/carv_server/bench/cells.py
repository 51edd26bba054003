"""Running variances with standard errors, and arithmetic of measured numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Cell", "Measured", "jackknife", "least", "mean_of"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A value and its standard error."""

    value: float
    error: float

    @property
    def relative(self) -> float:
        return self.error / abs(self.value) if self.value else math.inf

    def scaled(self, factor: float) -> Measured:
        return Measured(self.value * factor, self.error * abs(factor))

    def plus(self, other: Measured) -> Measured:
        """Sum with an independent number."""
        return Measured(self.value + other.value, math.hypot(self.error, other.error))

    def over(self, other: Measured) -> Measured:
        """Quotient of independent numbers, errors to first order."""
        value = self.value / other.value if other.value else math.nan
        return Measured(value, abs(value) * math.hypot(self.relative, other.relative))


def mean_of(values: Sequence[Measured]) -> Measured:
    """Mean of independent measurements; the error is that of measuring, not the spread."""
    count = len(values)
    return Measured(
        sum(v.value for v in values) / count, math.sqrt(sum(v.error**2 for v in values)) / count
    )


def least(values: Sequence[Measured]) -> Measured:
    """The smallest, with its own error. Of many noisy values it lies low on average."""
    return min(values, key=lambda v: v.value)


class Cell:
    """tr Cov of a random vector from independent replicates, with its standard error.

    Welford's recurrence in the form

        M2 = sum_{i >= 2} y_i,    y_i = (i - 1)/i ||x_i - mean_{i-1}||^2

    where every y_i has expectation tr Cov. For normal x the y_i are independent (Helmert's
    transform), for others uncorrelated up to the kurtosis; so their own spread gives the
    standard error of M2 / (n - 1) without a second pass. Two cells merge as in Chan, Golub and
    LeVeque (1979), whose cross term is one y more.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Float64Array = np.zeros(0)
        self._sum = 0.0
        self._squares = 0.0

    def add(self, replicates: Float64Array) -> None:
        """Independent replicates [n, D]."""
        x: Float64Array = np.asarray(replicates, dtype=np.float64)
        start: Float64Array = self.mean if self.count else np.zeros(int(x.shape[1]))
        seen = self.count + np.arange(len(x))
        # Deviations from the running mean keep their digits.
        deviation: Float64Array = np.subtract(x, start)
        before: Float64Array = np.subtract(np.cumsum(deviation, axis=0), deviation)
        gap: Float64Array = np.subtract(deviation, before / np.maximum(seen, 1)[:, None])
        steps = seen / (seen + 1) * np.einsum("nd,nd->n", gap, gap)
        self._sum += float(steps.sum())
        self._squares += float((steps**2).sum())
        self.count += len(x)
        self.mean = start + deviation.sum(axis=0) / self.count

    def merge(self, other: Cell) -> None:
        """Replicates of another cell of the same law."""
        if other.count == 0:
            return
        if self.count == 0:
            self.mean = np.zeros_like(other.mean)
        total = self.count + other.count
        gap = other.mean - self.mean
        step = self.count * other.count / total * float(gap @ gap)
        self._sum += other._sum + step
        self._squares += other._squares + step**2
        self.mean = self.mean + gap * (other.count / total)
        self.count = total

    @property
    def variance(self) -> Measured:
        """Unbiased; infinite error below three replicates."""
        freedom = self.count - 1
        if freedom < 2:
            return Measured(self._sum / freedom if freedom else math.nan, math.inf)
        value = self._sum / freedom
        spread = max(0.0, self._squares / freedom - value**2) * freedom / (freedom - 1)
        return Measured(value, math.sqrt(spread / freedom))

    @property
    def squared_mean(self) -> float:
        """||E x||^2, unbiased."""
        return float(self.mean @ self.mean) - self.variance.value / self.count


def jackknife(blocks: int, statistic: Callable[[int | None], float]) -> Measured:
    """A statistic of all blocks (argument None) and its delete-one error (argument: the block
    left out)."""
    return _jackknife(statistic(None), [statistic(b) for b in range(blocks)])


def _jackknife(whole: float, parts: Sequence[float]) -> Measured:
    values = np.asarray(parts)
    count = len(values)
    return Measured(
        whole, math.sqrt((count - 1) / count * float(((values - values.mean()) ** 2).sum()))
    )
