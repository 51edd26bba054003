"""B and W(K) measured from estimates, in one space: the latents' or the parameters'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_client._planning.decayed import Decayed
from carv_client._planning.within import (
    COUPLED,
    INDEPENDENT,
    WithinPoint,
    WithinShape,
    fit_within,
)

__all__ = ["Spread", "contrast", "squared_norm"]

Vector = npt.NDArray[Any]


class Spread:
    """Running B and W(K) of gradients.

    Two halves of an estimate, of K/2 draws each, give E‖g_A − g_B‖²/2 = W(K/2). Gradients of
    different renders give E‖G₁ − G₂‖²/2 = B + W(K), from which W(K) as fitted is taken.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._within: dict[int, Decayed] = {}
        self._between = Decayed(memory)
        self._last: tuple[Vector, float, int] | None = None
        self.shape: WithinShape = COUPLED

    def age(self) -> None:
        """One step passes."""
        for mean in (*self._within.values(), self._between):
            mean.age()

    def drawn(self, sampler: str | None, coupling: str | None) -> None:
        """How the draws hang together; draws made in another way are another W."""
        shape = INDEPENDENT if (sampler, coupling) == ("iid", "iid") else COUPLED
        if shape is not self.shape:
            self.shape = shape
            self._within.clear()

    def add_halves(self, squared_difference: float, draws: int) -> None:
        """‖g_A − g_B‖² of one render, from K/2 = ``draws`` draws each."""
        if draws not in self._within:
            self._within[draws] = Decayed(self._memory)
        self._within[draws].add(squared_difference / 2)

    def add_total(self, total: float, noise: float) -> None:
        """An observation of B + noise."""
        self._between.add(total - noise)

    def add_gradient(self, gradient: Vector, noise: float, renders: int) -> None:
        """The mean gradient of a step, against that of the last one: R·‖G₁ − G₂‖²/2.

        Holds what the expectation itself moved in between, so B comes out too large rather than
        too small. ``noise`` is W of one render's estimate. A gradient that is not finite is
        passed over: the next one is compared with the one before it.
        """
        if not np.isfinite(gradient).all():
            return
        last, self._last = self._last, (gradient, noise, renders)
        if last is not None and last[2] == renders and last[0].shape == gradient.shape:
            total = renders * squared_norm(gradient - last[0]) / 2
            self.add_total(total, (noise + last[1]) / 2)

    @property
    def comparisons(self) -> float:
        """Observations of B, discounted by age."""
        return self._between.weight

    @property
    def between(self) -> float | None:
        """B, at least 0; None without an observation."""
        mean = self._between.mean
        return None if mean is None else max(0.0, mean)

    @property
    def fit(self) -> tuple[float, float] | None:
        """(a, b) of K·W(K) = a + b/K; None without an observation."""
        points = [
            WithinPoint(draws, mean.mean, mean.weight)
            for draws, mean in self._within.items()
            if mean.mean is not None and self._regular(draws)
        ]
        fitted = fit_within(points, self.shape)
        single = self.single
        if fitted is None and single is not None:
            ratio = self.shape.excess_ratio
            limit = single / (self.shape.single_ratio * (1 + ratio))
            return limit, ratio * limit
        return fitted

    @property
    def single(self) -> float | None:
        """W(1) by halves of one draw each."""
        mean = self._within.get(1)
        return None if mean is None else mean.mean

    def noise(self, draws: int, halves: bool) -> float | None:
        """Variance of one render's estimate from K draws, of its halves' mean where there are."""
        fitted = self.fit
        if fitted is None:
            return None
        limit, excess = fitted
        if draws == 1:
            return self.shape.single_ratio * (limit + excess)
        strata = draws // 2 if halves else draws
        return (limit + excess / strata) / draws

    def _regular(self, draws: int) -> bool:
        """Whether the form holds: an odd number of draws leaves one without a partner."""
        return self.shape is INDEPENDENT or draws % 2 == 0


def squared_norm(values: npt.ArrayLike) -> float:
    """‖values‖² in float64; infinity where it overflows."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        return float(flat @ flat)


def contrast(renders: int) -> npt.NDArray[np.float64]:
    """Weights [R] that sum to zero, half of the renders against the other half.

    For independent renders E‖Σ_r s_r·J_r^T ĝ_r‖² = (B + W(K))·Σ_r s_r², so that one backward pass
    through all renders gives B + W(K).
    """
    ahead = (renders + 1) // 2
    signs: Sequence[float] = [1 / ahead] * ahead + [-1 / (renders - ahead)] * (renders - ahead)
    return np.array(signs)
