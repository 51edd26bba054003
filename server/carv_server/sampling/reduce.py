"""Reduction of evaluated draws to per-render sums and the variance of their mean.

The unit is the *group*: draws of a render that share eps. Groups are independent, so the
variance of the estimate g = (1/K) sum_j S_j over groups with sums S_j and sizes n_j is
(1/K^2) sum_j Var(S_j), with Var = tr Cov (arXiv 2605.21489, Eq. 3).

Groups of one law (independent timesteps) have Var(S_j) from their spread over the whole render.
Under strata that spread holds the spread of the strata's means too, which the estimate is rid
of. There the strata are *collapsed* (Cochran 1977, Section 5A.12): groups of two neighbouring
strata make a cell, and only the spread within cells counts. What is left of the means'
spread falls as 1/K^2 against the rest, and makes the estimate conservative.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "Moments",
    "Reduction",
    "estimate_from_moments",
    "merge_moments",
    "merge_reductions",
    "reduce_groups",
]


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of equal-sized groups' sums.

    Attributes:
        count: number of groups.
        mean: float64 [D], mean of S_j.
        deviation: sum_j ||S_j - mean||^2.
    """

    count: int
    mean: torch.Tensor
    deviation: float


@dataclass(frozen=True)
class Reduction:
    """Sums over some of the draws of a request.

    Attributes:
        moments: moments of group sums by (render, group size).
        spreads: by render, the sum over its cells of an estimate of sum_j Var(S_j); empty where
            every cell is one group. NaN for a cell that is one group among others that are not.
        twins: by render, sum_j ||S_j - S'_j||^2 / 2 over the groups of two streams; empty without
            streams.

    With streams A and B, moments and spreads are by 2 render (A) and 2 render + 1 (B).
    """

    moments: dict[tuple[int, int], Moments]
    spreads: dict[int, float]
    twins: dict[int, float]


def reduce_groups(
    values: torch.Tensor,
    renders: torch.Tensor,
    groups: torch.Tensor,
    cells: torch.Tensor,
    streams: torch.Tensor | None = None,
) -> Reduction:
    """Moments and spreads, computed on the device of ``values``.

    Args:
        values: [n, *event_shape], one weighted integrand per draw; every draw of a cell that
            is present must be present.
        renders, groups, cells: int64 [n] on the CPU.
        streams: int64 [n], 0 or 1: two streams of the same plan, whose groups and cells of one
            number are twins.

    Two passes, so that deviations keep their digits; means come to the CPU in float64.
    """
    flat = values.flatten(1).double()
    owners = renders if streams is None else 2 * renders + streams
    unique, index, sizes = _unique_rows(torch.stack([owners, groups], dim=1))
    sums = flat.new_zeros(len(unique), flat.shape[1]).index_add_(0, index.to(flat.device), flat)
    moments = _moments(sums, unique[:, 0], sizes)
    twins = {} if streams is None else _twins(sums, unique)
    if torch.equal(cells, groups):
        return Reduction(moments, {}, twins)
    cell_of_group = torch.empty(len(unique), dtype=torch.int64).scatter_(0, index, cells)
    return Reduction(moments, _spreads(sums, unique[:, 0], cell_of_group, sizes), twins)


def _twins(sums: torch.Tensor, keys: torch.Tensor) -> dict[int, float]:
    """From group sums [G, D] and their (2 render + stream, group), every group with its twin."""
    order = torch.argsort(keys[:, 0] % 2, stable=True)
    first, second = order.reshape(2, -1)
    squares = (sums[first.to(sums.device)] - sums[second.to(sums.device)]).square().sum(dim=1)
    owners = (keys[first, 0] // 2).numpy()
    totals = np.bincount(owners, squares.cpu().numpy() / 2.0)
    return {int(render): float(totals[render]) for render in np.unique(owners)}


def _moments(
    sums: torch.Tensor, renders: torch.Tensor, sizes: torch.Tensor
) -> dict[tuple[int, int], Moments]:
    """Moments of group sums [G, D] by (render, size)."""
    kinds, kind_of_group, counts = _unique_rows(torch.stack([renders, sizes], dim=1))
    kind = kind_of_group.to(sums.device)
    means = sums.new_zeros(len(kinds), sums.shape[1]).index_add_(0, kind, sums)
    means /= counts.to(sums.device).unsqueeze(1)
    squares = (sums - means[kind]).square().sum(dim=1)
    deviations = sums.new_zeros(len(kinds)).index_add_(0, kind, squares).cpu()
    rows = means.cpu()
    return {
        (int(kinds[i, 0]), int(kinds[i, 1])): Moments(int(counts[i]), rows[i], float(deviations[i]))
        for i in range(len(kinds))
    }


def _spreads(
    sums: torch.Tensor, renders: torch.Tensor, cells: torch.Tensor, sizes: torch.Tensor
) -> dict[int, float]:
    """Per render, sum over cells of sum_j c_j ||S_j - n_j mean||^2, c_j as in
    ``estimate_from_moments`` within the cell; all arguments by group."""
    unique, index, counts = _unique_rows(torch.stack([renders, cells], dim=1))
    draws = torch.zeros(len(unique), dtype=torch.int64).index_add_(0, index, sizes)
    where = index.to(sums.device)
    means = sums.new_zeros(len(unique), sums.shape[1]).index_add_(0, where, sums)
    means /= draws.to(sums.device).unsqueeze(1)
    residuals = sums - means[where] * sizes.to(sums.device).unsqueeze(1)
    squares = residuals.square().sum(dim=1).cpu().numpy()
    cell: npt.NDArray[np.int64] = index.numpy()
    size: npt.NDArray[np.int64] = sizes.numpy()
    count: npt.NDArray[np.int64] = counts.numpy()[cell]
    total: npt.NDArray[np.int64] = draws.numpy()[cell]
    # Equal groups: m / (m - 1); a lone group has no spread to go by.
    weights = np.where(count > 1, count / np.maximum(count - 1.0, 1.0), math.nan)
    # A cell of pairs and a single: groups come sorted by render and group, so by cell.
    uneven: npt.NDArray[np.int64] = np.unique(cell[size * count != total])
    for mixed in uneven:
        first = int(np.searchsorted(cell, mixed))  # pyright: ignore[reportUnknownArgumentType]
        members = slice(first, first + int(count[first]))
        sizes_of_cell = cast("list[int]", size[members].tolist())
        by_size = _group_weights(Counter(sizes_of_cell), int(total[first]))
        weights[members] = [by_size[n] for n in sizes_of_cell]
    owners = renders.numpy()
    sums_by_render = np.bincount(owners, weights * squares)
    return {int(render): float(sums_by_render[render]) for render in np.unique(owners)}


def _unique_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distinct rows, the index of each row among them, and their counts."""
    unique, index, counts = torch.unique(  # pyright: ignore[reportUnknownVariableType]
        rows, dim=0, return_inverse=True, return_counts=True
    )
    return unique, index, counts  # pyright: ignore[reportUnknownVariableType]


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of the union (Chan, Golub, LeVeque 1979); independent of how it was cut up."""
    iterator = iter(parts)
    total = next(iterator)
    for part in iterator:
        count = total.count + part.count
        delta = part.mean - total.mean
        total = Moments(
            count,
            total.mean + delta * (part.count / count),
            total.deviation
            + part.deviation
            + float(delta.square().sum()) * total.count * part.count / count,
        )
    return total


def merge_reductions(parts: Iterable[Reduction]) -> Reduction:
    """Of disjoint sets of cells."""
    moments: dict[tuple[int, int], list[Moments]] = {}
    spreads: dict[int, float] = {}
    twins: dict[int, float] = {}
    for part in parts:
        for key, value in part.moments.items():
            moments.setdefault(key, []).append(value)
        for render, spread in part.spreads.items():
            spreads[render] = spreads.get(render, 0.0) + spread
        for render, twin in part.twins.items():
            twins[render] = twins.get(render, 0.0) + twin
    merged = {key: merge_moments(values) for key, values in moments.items()}
    return Reduction(merged, spreads, twins)


def estimate_from_moments(
    by_size: Mapping[int, Moments], draws: int, spread: float | None = None
) -> tuple[torch.Tensor, float]:
    """One render's estimate and an estimate of its variance.

    Args:
        by_size: moments of group sums by group size n.
        draws: K = sum of count * n.
        spread: estimate of sum_j Var(S_j) from collapsed strata; None takes the spread over all
            groups.

    Returns:
        mean: float64 [D], (1/K) sum_j S_j.
        variance: an estimate of tr Cov of the mean; NaN where there are fewer than two groups.

    With G equal groups this is the sample variance over groups, sum ||S_j - n g||^2 G / (G - 1)
    / K^2. For unequal sizes the terms ||S_j - n_j g||^2 get weights c_j that solve
    c_j (1 - 2 n_j / K) + sum_i c_i n_i^2 / K^2 = 1, which makes the sum unbiased for
    sum_j Var(S_j) whatever the variances, as long as the groups have means n_j E[g] (iid
    draws). Where that has no positive solution (a group holds half the draws or more), unit
    weights are scaled up until no variance counts less than once: an overestimate. Groups of
    unequal means, as under strata, add their spread: conservative.
    """
    total = torch.stack([m.mean * m.count for m in by_size.values()]).sum(dim=0)
    mean = total / draws
    groups = sum(m.count for m in by_size.values())
    if groups < 2:
        return mean, math.nan
    if spread is not None:
        return mean, spread / draws**2
    variance = 0.0
    weights = _group_weights({size: m.count for size, m in by_size.items()}, draws)
    for size, moments in by_size.items():
        offset = float((moments.mean - size * mean).square().sum())
        variance += weights[size] * (moments.deviation + moments.count * offset)
    return mean, variance / draws**2


def _group_weights(counts: Mapping[int, int], draws: int) -> dict[int, float]:
    """c_j by group size; see ``estimate_from_moments``."""
    if len(counts) == 1:
        groups = next(iter(counts.values()))
        return dict.fromkeys(counts, groups / (groups - 1))
    slack = {size: 1.0 - 2.0 * size / draws for size in counts}
    if min(slack.values()) <= 0:
        # With unit weights Var(S_j) enters with coefficient slack_j + spread > 0: dividing by
        # the least of these bounds sum_j Var(S_j) from above.
        spread = sum(count * size**2 for size, count in counts.items()) / draws**2
        return dict.fromkeys(counts, 1.0 / min(s + spread for s in slack.values()))
    pull = sum(count * size**2 / slack[size] for size, count in counts.items()) / draws**2
    total = pull / (1.0 + pull)
    return {size: (1.0 - total) / slack[size] for size in counts}
