"""A teacher's answers with known B and W(K), known costs, and a clock that they move on.

Latents have 64 values. J^T passes them to as many parameters, scaled: the first half by √0.4,
the second by √0.1. Single draws have isotropic noise, of which J^T then passes a quarter;
coupled draws have two thirds of theirs in the second half, of which it passes a fifth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from carv_client import Estimate
from carv_client._types import DrawTable

__all__ = ["Simulation"]

SIZE = 64
HALF = np.arange(SIZE) < SIZE // 2
JACOBIAN = np.sqrt(np.where(HALF, 0.4, 0.1))
ISOTROPIC = np.ones(SIZE) / SIZE
COUPLED = np.where(HALF, 1 / 3, 2 / 3) / (SIZE / 2)


@dataclass
class Simulation:
    """One optimisation: variances in latent space, costs in seconds."""

    between: float = 0.5
    limit: float = 1.0
    """a of coupled draws."""
    excess: float = 1.4
    """b."""
    single: float = 3.6
    """W(1) under the proposal."""
    uniform: float = 5.0
    """W(1) of a uniform draw, and K·W(K) of independent ones."""
    upstream_seconds: float = 0.4
    """Of one render, a third of it after the request."""
    evaluation_seconds: float = 0.02
    branches: int = 2
    squared_gradient: float = 2.0
    seed: int = 0
    now: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    def within(self, draws: int) -> float:
        """W(K) of coupled draws in latent space."""
        return self.single if draws == 1 else (self.limit + self.excess / draws) / draws

    def estimate(
        self, draws: int, halves: bool, renders: int = 1, independent: bool = False
    ) -> Estimate:
        """What the server would answer; takes its time."""
        mean = np.full(SIZE, np.sqrt(self.squared_gradient / SIZE))
        exact = mean + self._normal(renders, self.between, ISOTROPIC)
        both = None
        if independent:
            noise, covariance = self.uniform / draws, ISOTROPIC
        else:
            noise = self.within(draws)
            covariance = ISOTROPIC if draws == 1 else COUPLED
        if halves:
            half = 2 * self.uniform / draws if independent else self.within(draws // 2)
            both = np.stack([exact + self._normal(renders, half, covariance) for _ in range(2)])
            gradient = both.mean(axis=0)
        else:
            gradient = exact + self._normal(renders, noise, covariance)
        seconds = renders * draws * self.branches * self.evaluation_seconds
        self.now += 1.5 * seconds  # half of it in a queue
        return Estimate(
            gradient=gradient.astype(np.float32),
            noise_variance=None,
            variance_estimator="unavailable",
            effective_sample_size=np.ones(renders, np.float32),
            seed=0,
            sampler="iid" if independent else "nested",
            proposal="prior" if independent else "adaptive",
            coupling="iid" if independent else "antithetic",
            draws_spent=renders * draws,
            evaluations_spent=renders * draws * self.branches,
            teacher_digest="",
            queue_seconds=0.5 * seconds,
            compute_seconds=seconds,
            total_seconds=1.5 * seconds,
            draws=self._table(renders, draws),
            half_estimates=None if both is None else both.astype(np.float32),
        )

    def _normal(self, renders: int, variance: float, share: np.ndarray) -> np.ndarray:
        return self.rng.normal(size=(renders, SIZE)) * np.sqrt(variance * share)

    def _table(self, renders: int, draws: int) -> DrawTable:
        """Norms and weights of two kinds of draw, half and half, p/q = 1/2 and 3/2, such that
        E (p/q)·‖f‖² = uniform + ‖g‖² and E ((p/q)·‖f‖)² = single + ‖g‖²."""
        squared = self.squared_gradient + self.between
        first, second = self.uniform + squared, self.single + squared
        norms = np.array([6 * first - 4 * second, (4 * second - 2 * first) / 3])
        kind = self.rng.integers(0, 2, size=(renders, draws))
        weights = np.where(kind == 0, 0.5, 1.5)
        integers = np.zeros((renders, draws), np.int64)
        return DrawTable(
            timesteps=integers,
            noise_indices=integers,
            signs=np.ones((renders, draws), np.float32),
            importance_weights=weights.astype(np.float32),
            norms=np.sqrt(norms[kind]).astype(np.float32),
        )

    @staticmethod
    def pull_back(gradient: np.ndarray) -> np.ndarray:
        """J^T, summed over renders: [P]."""
        return (gradient * JACOBIAN).sum(axis=0)
