"""Variance of one gradient from R renders and K draws each, in latent and in parameter space.

With R views drawn independently and uniformly from C of them, V(R, K) = B / R + W(R, K): B is the
variance between views, W the variance over draws at given views, averaged over them. Draws of
different renders are independent for iid and per-render strata, so that W(R, K) = W(1, K) / R
there; and iid draws have W(1, K) = W(1, 1) / K. Both are used for the methods that they hold
for. Samplers that couple renders are measured at every (R, K), on tuples of different views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carv_server.bench.cells import Cell, Measured, jackknife, mean_of
from carv_server.bench.direct import Effort, Seeds
from carv_server.bench.laboratory import Laboratory, request_plans
from carv_server.bench.methods import Method
from carv_server.bench.parameter import Views
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.past import Past
from carv_server.sampling.plan import resolve

__all__ = ["SPACES", "GridStudy", "Replicates", "between_views", "measure_within"]

Float64Array = npt.NDArray[np.float64]

SPACES = ("latent", "parameter")


@dataclass(frozen=True)
class Replicates:
    """W(R, K) by space, and the replicates behind it.

    Attributes:
        within: by space.
        values: by space, float64 [tuples, replicates, P].
    """

    within: dict[str, Measured]
    values: dict[str, Float64Array]


@dataclass(frozen=True)
class GridStudy:
    """One field.

    Attributes:
        past: that the server's default was planned on.
        between: B by space.
        within: W by (space, method, R, K).
    """

    views: Views
    past: Past
    between: dict[str, Measured]
    within: dict[tuple[str, str, int, int], Measured]
    draw_seconds: float

    def total(self, space: str, method: str, renders: int, draws: int) -> Measured:
        """V(R, K)."""
        within = self.within[space, method, renders, draws]
        return self.between[space].scaled(1 / renders).plus(within)

    def quotient(
        self, space: str, over: tuple[str, int, int], under: tuple[str, int, int]
    ) -> Measured:
        """V of one (method, R, K) over V of another: their B is one number, so its error
        cancels in part."""
        between = self.between[space]
        (r1, w1), (r2, w2) = ((p[1], self.within[space, *p]) for p in (over, under))
        top, bottom = between.value / r1 + w1.value, between.value / r2 + w2.value
        value = top / bottom
        slopes = (
            (1 / r1 - value / r2) / bottom * between.error,
            w1.error / bottom,
            value / bottom * w2.error,
        )
        return Measured(value, float(np.linalg.norm(slopes)))

    def multiplier(
        self,
        space: str,
        ratio: float,
        point: tuple[str, int, int],
        baseline: tuple[str, int, int] = ("uniform", 2, 1),
    ) -> Measured:
        """ECM at c_up / c_den = ``ratio``: (V C) of the baseline over (V C) of the point."""
        costs = [r * (ratio + k) for _, r, k in (baseline, point)]
        return self.quotient(space, baseline, point).scaled(costs[0] / costs[1])

    def best(self, space: str, ratio: float, method: str) -> tuple[int, int]:
        """(R, K) of the largest multiplier."""
        points = {(r, k) for s, m, r, k in self.within if (s, m) == (space, method)}
        return max(sorted(points), key=lambda p: self.multiplier(space, ratio, (method, *p)).value)


def measure_within(
    laboratory: Laboratory,
    views: Views,
    method: Method,
    objective: ObjectiveTables,
    past: Past | None,
    renders: int,
    draws: int,
    effort: Effort,
    seeds: Seeds,
) -> Replicates:
    """Replicates at fixed tuples of R different views; ``effort`` counts those of one tuple."""
    resolved = resolve(method.sampling, objective, past, draws)
    step = max(1, views.count // renders)
    first = np.arange(views.count)[:, None]
    tuples = (first + step * np.arange(renders)) % views.count  # [C, R]
    cells = {space: [Cell() for _ in tuples] for space in SPACES}
    kept: dict[str, list[Float64Array]] = {space: [] for space in SPACES}
    while not _done(cells, effort):
        where = np.repeat(tuples, effort.batch, axis=0).reshape(-1)
        taken = seeds.take(len(tuples) * effort.batch)
        plan = request_plans(resolved, objective, renders, draws, taken)
        prompts = [views.prompts[view] for view in where]
        evaluated = laboratory.evaluate(plan, views.latents[where], prompts, taken.start)
        gradients = evaluated.estimates(objective).reshape(
            len(tuples), effort.batch, renders, laboratory.size
        )
        batch = {
            "latent": gradients.mean(axis=2),
            "parameter": np.einsum(
                "cmrd,crdp->cmp", gradients, views.factors[tuples], optimize=True
            )
            / renders,
        }
        for space, values in batch.items():
            kept[space].append(values)
            for cell, replicates in zip(cells[space], values, strict=True):
                cell.add(replicates)
    return Replicates(
        {space: mean_of([cell.variance for cell in group]) for space, group in cells.items()},
        {space: np.concatenate(parts, axis=1) for space, parts in kept.items()},
    )


def _done(cells: dict[str, list[Cell]], effort: Effort) -> bool:
    count = min(cell.count for group in cells.values() for cell in group)
    if count == 0:
        return False
    means = [mean_of([cell.variance for cell in group]) for group in cells.values()]
    return count >= effort.most or all(mean.relative <= effort.target for mean in means)


def between_views(values: Float64Array) -> Measured:
    """B: tr Cov of the exact gradient at a view drawn uniformly from these, from replicates
    [C, M, P] at each.

    Unbiased over the draws (a U-statistic over replicates); its error, by a jackknife over
    replicates, is that of the draws and not of the choice of views.
    """
    count, replicates = values.shape[0], values.shape[1]
    blocks = min(8, replicates)
    block_of = np.floor(np.arange(replicates, dtype=np.float64) * (blocks / replicates + 1e-9))

    def statistic(left_out: int | None) -> float:
        x = values[:, block_of != (-1 if left_out is None else left_out)]
        m = x.shape[1]
        total = x.sum(axis=1)
        squares = np.einsum("cmp,cmp->c", x, x)
        own = (np.einsum("cp,cp->c", total, total) - squares) / (m * (m - 1))
        means = total / m
        cross = means @ means.T
        off = (cross.sum() - np.trace(cross)) / (count * (count - 1))
        return float(own.mean() - off) * (count - 1) / count

    return jackknife(blocks, statistic)
