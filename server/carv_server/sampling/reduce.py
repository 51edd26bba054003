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

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

__all__ = [
    "Moments",
    "Reduction",
    "estimate_from_moments",
    "group_weights",
    "merge_moments",
    "merge_reductions",
]


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of equal-sized groups' sums.

    Attributes:
        count: number of groups.
        mean: float64 [D], mean of S_j; float32 where it is one draw's own value, which that holds.
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


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of the union (Chan, Golub, LeVeque 1979); independent of how it was cut up."""
    iterator = iter(parts)
    total = next(iterator)
    for part in iterator:
        count = total.count + part.count
        delta = part.mean.double() - total.mean
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
    totals = [m.mean.double() * m.count for m in by_size.values()]
    mean = functools.reduce(torch.add, totals) / draws
    groups = sum(m.count for m in by_size.values())
    if groups < 2:
        return mean, math.nan
    if spread is not None:
        return mean, spread / draws**2
    variance = 0.0
    weights = group_weights({size: m.count for size, m in by_size.items()}, draws)
    for size, moments in by_size.items():
        offset = float((moments.mean - size * mean).square().sum())
        variance += weights[size] * (moments.deviation + moments.count * offset)
    return mean, variance / draws**2


def group_weights(counts: Mapping[int, int], draws: int) -> dict[int, float]:
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
