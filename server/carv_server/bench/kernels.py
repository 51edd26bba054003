"""Variance of any proposal, strata and coupling by quadrature over a bank of draws.

With f = w h, h = sum_j a_j eps_hat_j + (d + c) eps, at one state of x, the kernels

    S(t, u) = E <h(t, eps), h(u, eps)>,   O(t, u) = E <h(t, eps), h(u, -eps)>,
    G(t, u) = <E h(t, eps), E h(u, eps)>

say all that a variance needs. For strata k = 1 .. K with conditional laws q_k of t and
v = p w / q,

    K^2 Var = sum_k ( E_k v^2 S(t, t) - E_k E_k v v' G )
              + 2 sum_pairs ( E_j E_k v v' (O - G) )

and for iid draws K Var = E v^2 S(t, t) - ||g||^2. The kernels are estimated on a coarse grid of
timesteps, with common noises and both signs, and interpolated linearly between (they are smooth
in t); G is a U-statistic over noises. Errors are a jackknife over blocks of noises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from carv_server.bench.cells import Measured, jackknife
from carv_server.bench.laboratory import Laboratory
from carv_server.bench.states import State
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import explicit_plan
from carv_server.sampling.proposals import DEFENSIVE_SHARE

__all__ = [
    "BLOCKS",
    "Bank",
    "Kernels",
    "Measurer",
    "iid_variance",
    "make_bank",
    "measurer",
    "noise_control",
    "strata_variance",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

BLOCKS = 8
"""Blocks of noises of the jackknife."""


@dataclass(frozen=True)
class Bank:
    """eps_hat at one state, on a grid of timesteps with common noises.

    Attributes:
        grid: int64 [T], rising.
        predictions: float32 [T, 2 signs, 2 branches, N, D].
        noise: float32 [N, D].
    """

    grid: npt.NDArray[np.int64]
    predictions: Float32Array
    noise: Float32Array

    def blocks(self, objective: ObjectiveTables, control: Float64Array | None) -> BlockSums:
        """Sums over blocks of noises under an objective; c(t) is ``control``, or zero."""
        t = self.grid
        a, d = objective.branch_coefficients[:, t], objective.noise_coefficient[t]
        if control is not None:
            d = d + control[t]
        signs = np.array([1.0, -1.0])[None, :, None, None]
        h: Float64Array = sum(
            (row[:, None, None, None] * self.predictions[:, :, j] for j, row in enumerate(a)),
            np.zeros(()),
        )
        h += d[:, None, None, None] * signs * self.noise[None, None]
        noises = self.noise.shape[0]
        block_of: npt.NDArray[np.int64] = np.arange(noises, dtype=np.int64) * BLOCKS // noises
        same: list[Float64Array] = []
        opposite: list[Float64Array] = []
        totals: list[Float64Array] = []
        squares: list[Float64Array] = []
        for block in range(BLOCKS):
            part = block_of == block
            plus, minus = (h[:, s, part].reshape(len(t), -1) for s in (0, 1))
            mean = (h[:, 0, part] + h[:, 1, part]) / 2
            cross = plus @ minus.T
            flat = mean.reshape(len(t), -1)
            same.append((plus @ plus.T + minus @ minus.T) / 2)
            opposite.append((cross + cross.T) / 2)
            totals.append(mean.sum(axis=1))
            squares.append(flat @ flat.T)
        counts = np.bincount(block_of, minlength=BLOCKS)
        return BlockSums(
            counts, np.stack(same), np.stack(opposite), np.stack(totals), np.stack(squares)
        )


@dataclass(frozen=True)
class BlockSums:
    """Sums of each block: ``same``, ``opposite``, ``squares`` [B, T, T], ``totals`` [B, T, D]."""

    counts: npt.NDArray[np.int64]
    same: Float64Array
    opposite: Float64Array
    totals: Float64Array
    squares: Float64Array

    def kernels(self, left_out: int | None) -> tuple[Float64Array, Float64Array, Float64Array]:
        """(S, O, G) on the coarse grid, with one block left out or none."""
        keep = np.arange(len(self.counts)) != (-1 if left_out is None else left_out)
        count = int(self.counts[keep].sum())
        total = self.totals[keep].sum(axis=0)
        product = total @ total.T - self.squares[keep].sum(axis=0)
        return (
            self.same[keep].sum(axis=0) / count,
            self.opposite[keep].sum(axis=0) / count,
            product / (count * (count - 1)),
        )


@dataclass(frozen=True)
class Kernels:
    """Kernels on the support of the prior.

    Attributes:
        prior, weighting: float64 [n], on the support.
        interpolation: float64 [n, T]: fine values are this times coarse ones.
        same, opposite, product: float64 [T, T].
    """

    prior: Float64Array
    weighting: Float64Array
    interpolation: Float64Array
    same: Float64Array
    opposite: Float64Array
    product: Float64Array

    @cached_property
    def second_moment(self) -> Float64Array:
        """m2(t) = E ||h||^2, float64 [n]."""
        return self.interpolation @ np.diag(self.same)

    @cached_property
    def squared_gradient(self) -> float:
        mean = (self.prior * self.weighting) @ self.interpolation
        return float(mean @ self.product @ mean)

    def uniform(self) -> Float64Array:
        return self.prior

    def weight(self) -> Float64Array:
        return _normal(self.prior * np.abs(self.weighting))

    def oracle(self) -> Float64Array:
        """Best for iid draws: q proportional to p |w| sqrt(m2)."""
        moment = np.maximum(self.second_moment, 0.0)
        return _normal(self.prior * np.abs(self.weighting) * np.sqrt(moment))

    def learned(self) -> Float64Array:
        """The server's proposal if its moments were known: the oracle over the server's floor."""
        return (1.0 - DEFENSIVE_SHARE) * self.oracle() + DEFENSIVE_SHARE * self.prior


Statistic = Callable[[Kernels], float]


@dataclass(frozen=True)
class Measurer:
    """Statistics of a bank under one objective, with their errors."""

    sums: BlockSums
    support: npt.NDArray[np.int64]
    interpolation: Float64Array
    objective: ObjectiveTables
    _made: dict[int | None, Kernels] = field(default_factory=dict["int | None", Kernels])

    def __call__(self, statistic: Statistic) -> Measured:
        return jackknife(len(self.sums.counts), lambda block: statistic(self.kernels(block)))

    def kernels(self, left_out: int | None = None) -> Kernels:
        if left_out not in self._made:
            same, opposite, product = self.sums.kernels(left_out)
            self._made[left_out] = Kernels(
                self.objective.prior[self.support],
                self.objective.weighting[self.support],
                self.interpolation,
                same,
                opposite,
                product,
            )
        return self._made[left_out]


def measurer(
    bank: Bank, objective: ObjectiveTables, control: Float64Array | None = None
) -> Measurer:
    """Of a bank's draws; c(t) is ``control``, or zero."""
    support = np.flatnonzero(objective.prior)
    interpolation = _interpolation(support, bank.grid)
    return Measurer(bank.blocks(objective, control), support, interpolation, objective)


def noise_control(bank: Bank, objective: ObjectiveTables) -> Float64Array:
    """The fitted c(t) = -E <h, eps> / E ||eps||^2, float64 on the teacher's grid."""
    t = bank.grid
    a, d = objective.branch_coefficients[:, t], objective.noise_coefficient[t]
    signs = np.array([1.0, -1.0])
    norm = float(np.square(bank.noise, dtype=np.float64).sum())
    products: Float64Array = np.einsum(
        "bt,tsbnd,s,nd->t", a, bank.predictions, signs, bank.noise, optimize=True
    )
    slope: Float64Array = products / (2 * norm) + d
    return -np.interp(np.arange(len(objective.prior)), t, slope)


def make_bank(
    laboratory: Laboratory, state: State, grid: npt.NDArray[np.int64], noises: int, seed: int
) -> Bank:
    """Evaluates 4 T N rows: every timestep, sign, branch and noise. N is a multiple of BLOCKS."""
    indices = np.repeat(np.arange(noises), 2)[None]
    signs = np.tile([1.0, -1.0], noises)[None]
    ones = np.ones_like(signs)
    found: list[Float32Array] = []
    noise = np.zeros((noises, laboratory.size), np.float32)
    # A request for each timestep, all of one seed: the noise is common to them.
    for t in grid:
        plan = explicit_plan(np.full_like(indices, t), indices, signs, ones)
        draws = laboratory.evaluate(plan, state.latents[None], [state.conditioning], seed)
        noise = draws.noise[0, ::2]
        found.append(draws.predictions.reshape(2, noises, 2, -1).transpose(2, 0, 1, 3))
    return Bank(grid, np.stack(found), noise)


def iid_variance(kernels: Kernels, table: Float64Array, draws: int) -> float:
    """tr Cov of a mean of K iid draws from q, float64 [n] on the support."""
    ratio = kernels.prior * kernels.weighting / table
    second = float((table * ratio**2) @ kernels.second_moment)
    return (second - kernels.squared_gradient) / draws


def strata_variance(
    kernels: Kernels, table: Float64Array, draws: int, *, antithetic: bool
) -> float:
    """tr Cov of an estimate from K draws in as many strata of q; with ``antithetic`` the
    strata 2j and 2j + 1 share eps with opposite signs, and the last of an odd K is alone."""
    edges = np.concatenate([[0.0], np.cumsum(table)])
    edges /= edges[-1]
    k = np.arange(draws)[:, None]
    inside = np.minimum(edges[1:], (k + 1) / draws) - np.maximum(edges[:-1], k / draws)
    law = np.clip(inside, 0.0, None) * draws  # [K, n]
    ratio = kernels.prior * kernels.weighting / table
    mean = (law * ratio) @ kernels.interpolation  # [K, T]
    second = (law * ratio**2) @ kernels.second_moment
    own = np.einsum("kt,tu,ku->k", mean, kernels.product, mean)
    total = float((second - own).sum())
    if antithetic:
        first, other = mean[0 : draws // 2 * 2 : 2], mean[1::2]
        shared = kernels.opposite - kernels.product
        total += 2.0 * float(np.einsum("kt,tu,ku->", first, shared, other))
    return total / draws**2


def _normal(mass: Float64Array) -> Float64Array:
    return mass / mass.sum()


def _interpolation(support: npt.NDArray[np.int64], grid: npt.NDArray[np.int64]) -> Float64Array:
    """Linear between the grid's timesteps, float64 [n, T]; constant beyond its ends."""
    columns: list[Float64Array] = [np.interp(support, grid, row) for row in np.eye(len(grid))]
    return np.stack(columns, axis=1)
