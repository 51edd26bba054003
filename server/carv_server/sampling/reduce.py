"""Reduction of evaluated draws to per-render sums and the variance of their mean.

The unit is the *group*: draws of a render that share eps. Groups are independent, so the
variance of the estimate g = (1/K) sum_j S_j over groups with sums S_j and sizes n_j is
(1/K^2) sum_j Var(S_j), with Var = tr Cov (arXiv 2605.21489, Eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Moments", "estimate_from_moments", "group_moments", "merge_moments"]


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


def group_moments(
    values: torch.Tensor, renders: torch.Tensor, groups: torch.Tensor
) -> dict[tuple[int, int], Moments]:
    """Moments of group sums by (render, group size), computed on the device of ``values``.

    Args:
        values: [n, *event_shape], one weighted integrand per draw; every draw of a group that
            is present must be present.
        renders, groups: int64 [n] on the CPU.

    Two passes, so that deviations keep their digits; means come to the CPU in float64.
    """
    flat = values.flatten(1).double()
    keys = torch.stack([renders, groups], dim=1)
    unique, index, sizes = _unique_rows(keys)
    sums = flat.new_zeros(len(unique), flat.shape[1]).index_add_(0, index.to(flat.device), flat)

    cells, cell_of_group, counts = _unique_rows(torch.stack([unique[:, 0], sizes], dim=1))
    cell = cell_of_group.to(flat.device)
    means = flat.new_zeros(len(cells), flat.shape[1]).index_add_(0, cell, sums)
    means /= counts.to(flat.device).unsqueeze(1)
    squares = (sums - means[cell]).square().sum(dim=1)
    deviations = flat.new_zeros(len(cells)).index_add_(0, cell, squares).cpu()
    rows = means.cpu()
    return {
        (int(cells[i, 0]), int(cells[i, 1])): Moments(int(counts[i]), rows[i], float(deviations[i]))
        for i in range(len(cells))
    }


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


def estimate_from_moments(by_size: Mapping[int, Moments], draws: int) -> tuple[torch.Tensor, float]:
    """One render's estimate and an estimate of its variance.

    Args:
        by_size: moments of group sums by group size n.
        draws: K = sum of count * n.

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
