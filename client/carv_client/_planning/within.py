"""W(K), the variance of a mean over K draws, from measurements at a few K."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["COUPLED", "INDEPENDENT", "WithinPoint", "WithinShape", "fit_within"]


@dataclass(frozen=True)
class WithinShape:
    """What is known of W(K) before any measurement, for a way of drawing."""

    excess_ratio: float
    """b/a."""
    spread: float
    """Standard deviation of b/a over problems."""
    single_ratio: float
    """W(1)/(a + b)."""


COUPLED = WithinShape(excess_ratio=1.4, spread=0.5, single_ratio=1.45)
"""Strata with antithetic pairs: from relative efficiencies of 1.7, 3.3, 4.4, 4.9, 5.2, 5.65 and
5.83 at K = 1, 2, 4, 6, 8, 16 and 32, measured on the embedded teacher at guidance 7.5."""
INDEPENDENT = WithinShape(excess_ratio=0.0, spread=0.0, single_ratio=1.0)
"""Independent draws: K·W(K) is constant."""


@dataclass(frozen=True)
class WithinPoint:
    """A measured W(K)."""

    draws: int
    """K: even, or 1 with independent draws."""
    variance: float
    """W(K), mean over observations."""
    observations: float = 1.0
    """How many, discounted by age."""


def fit_within(
    points: Iterable[WithinPoint], shape: WithinShape = COUPLED
) -> tuple[float, float] | None:
    """(a, b) of K·W(K) = a + b/K by ridge regression; None without a positive observation.

    Minimises Σ n_i·((K_i·W_i − a − b/K_i)/(a₀ + b₀/K_i))² + ((b − β·a)/(s·a₀))², where β, s are
    the shape's and a₀ is the a that fits best with b₀ = β·a₀: one observation is taken to have a
    relative error of order one, so that errors are relative and the prior weighs as much as an
    observation. Where all K are the same, b = β·a exactly.
    """
    kept = [point for point in points if point.observations > 0]
    if not kept:
        return None
    beta = shape.excess_ratio
    draws = np.array([point.draws for point in kept], dtype=np.float64)
    scaled = draws * np.array([point.variance for point in kept])
    count = np.array([point.observations for point in kept])
    form = 1.0 + beta / draws
    start = float(np.average(scaled / form, weights=count))
    if not start > 0:
        return None
    if shape.spread == 0.0:
        return start, beta * start
    root = np.sqrt(count) / (start * form)
    matrix = np.stack([root, root / draws], axis=1)
    target = root * scaled
    ridge = 1.0 / (shape.spread * start)
    matrix = np.concatenate([matrix, [[-beta * ridge, ridge]]])
    target = np.append(target, 0.0)
    limit, excess = (float(value) for value in np.linalg.lstsq(matrix, target, rcond=None)[0])
    if limit <= 0 or excess < 0:  # noise: K·W(K) neither rises nor ends at zero
        return start, beta * start
    return limit, excess
