"""Running means that forget."""

from __future__ import annotations

import math

__all__ = ["Decayed"]


class Decayed:
    """A mean of observations of which older ones count less: by e^(−1) after ``memory`` steps.

    While fewer steps than that have passed it is close to the plain mean, so that the first
    observations are not outweighed by an arbitrary start.
    """

    def __init__(self, memory: float) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._total = 0.0
        self.weight = 0.0
        """Observations, discounted by age."""

    def age(self) -> None:
        """One step passes."""
        self._total *= self._keep
        self.weight *= self._keep

    def add(self, total: float, weight: float = 1.0) -> None:
        """``weight`` observations whose sum is ``total``; none where it is not finite, which
        would never be forgotten."""
        if not math.isfinite(self._total + total):
            return
        self._total += total
        self.weight += weight

    @property
    def mean(self) -> float | None:
        """None without observations."""
        return self._total / self.weight if self.weight > 0 else None
