"""Group sums of evaluated draws, over the works of a whole microbatch at once.

The index arithmetic is small and on the host; sums and squared deviations are on the device of
the values. What they mean is in ``reduce``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from carv_server.sampling.reduce import Moments, Reduction, group_weights

__all__ = ["DrawLabels", "reduce_groups", "reduce_works"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DrawLabels:
    """Whose the draws of one work are.

    Attributes:
        renders, groups, cells: int64 [n], 0 or more. Every draw of a cell that is
            present must be present.
        streams: int64 [n], 0 or 1: two streams of the same plan, whose groups and cells of one
            number are twins. Owners are then 2 render + stream.
    """

    renders: Int64Array
    groups: Int64Array
    cells: Int64Array
    streams: Int64Array | None = None

    @property
    def owners(self) -> Int64Array:
        return self.renders if self.streams is None else 2 * self.renders + self.streams

    @property
    def is_lone_draw(self) -> bool:
        """One draw, which nothing is to be set against."""
        return self.streams is None and self.groups.tolist() == self.cells.tolist()


@dataclass(frozen=True)
class _Groups:
    """Groups of all works, sorted by work, owner and group.

    Attributes:
        of_draw: int64 [N], each draw's group.
        works, owners, sizes, cells: int64 [G], by group; ``owner_keys`` are distinct over works.
    """

    of_draw: Int64Array
    works: Int64Array
    owners: Int64Array
    owner_keys: Int64Array
    sizes: Int64Array
    cells: Int64Array


def reduce_groups(
    values: torch.Tensor,
    renders: Int64Array,
    groups: Int64Array,
    cells: Int64Array,
    streams: Int64Array | None = None,
) -> Reduction:
    """As ``reduce_works``, of one work."""
    return reduce_works(values, [DrawLabels(renders, groups, cells, streams)])[0]


def reduce_works(values: torch.Tensor, works: Sequence[DrawLabels]) -> list[Reduction]:
    """Moments, spreads and twins of each work.

    Args:
        values: [N, *event_shape], one weighted integrand per draw, the works' one after another.

    Two passes, so that deviations keep their digits; means come to the CPU in float64, each
    work's in memory of its own.
    """
    flat = values.flatten(1)
    if len(flat) == len(works) and all(work.is_lone_draw for work in works):
        return _lone_draws(flat, works)
    groups = _grouped(works)
    count = len(groups.sizes)
    if count == len(flat) and np.array_equal(groups.of_draw, np.arange(count)):
        sums = flat  # every draw is its own group: nothing to add, so float32 is exact
    else:
        sums = flat.new_zeros(count, flat.shape[1], dtype=torch.float64)
        sums.index_add_(0, _on(sums, groups.of_draw), flat.double())

    kinds, kind_of_group, counts = _unique(groups.owner_keys, groups.sizes)
    means = sums
    deviations = np.zeros(len(kinds))
    if len(kinds) < count:
        means = _means(sums, kind_of_group, counts)
        squares = _squares(sums, means, kind_of_group)
        deviations = np.bincount(kind_of_group, squares)
    elif not np.array_equal(kinds, np.arange(count)):
        means = sums[_on(sums, kinds)]
    host_means = means.cpu()

    uneven = np.array([not np.array_equal(work.cells, work.groups) for work in works])
    spreads = _spreads(sums, groups, np.flatnonzero(uneven[groups.works]), len(works))
    streamed = np.array([work.streams is not None for work in works])
    twins = _twins(sums, groups, np.flatnonzero(streamed[groups.works]), len(works))

    reductions: list[Reduction] = []
    bounds = np.searchsorted(groups.works[kinds], np.arange(len(works) + 1)).tolist()
    owners, sizes = groups.owners[kinds].tolist(), groups.sizes[kinds].tolist()
    for work, (start, stop) in enumerate(pairwise(bounds)):
        # A view would keep the whole microbatch alive for as long as its work's request.
        own = host_means[start:stop].to(torch.float64, copy=len(works) > 1 or means is flat)
        reductions.append(
            Reduction(
                {
                    (owners[i], sizes[i]): Moments(
                        int(counts[i]), own[i - start], float(deviations[i])
                    )
                    for i in range(start, stop)
                },
                spreads[work],
                twins[work],
            )
        )
    return reductions


def _lone_draws(flat: torch.Tensor, works: Sequence[DrawLabels]) -> list[Reduction]:
    """What many clients' requests of one draw make of a microbatch."""
    means = flat.cpu().unbind()
    if len(means) > 1:
        # A view would keep the whole microbatch alive for as long as its work's request.
        means = [mean.clone() for mean in means]
    return [
        Reduction({(int(work.renders[0]), 1): Moments(1, mean, 0.0)}, {}, {})
        for work, mean in zip(works, means, strict=True)
    ]


def _grouped(works: Sequence[DrawLabels]) -> _Groups:
    work_of_draw = np.repeat(np.arange(len(works)), [len(work.renders) for work in works])
    owners = np.concatenate([work.owners for work in works])
    labels = np.concatenate([work.groups for work in works])
    cells = np.concatenate([work.cells for work in works])
    span = int(owners.max()) + 1
    keys = work_of_draw * span + owners
    first, of_draw, sizes = _unique(keys, labels)
    return _Groups(of_draw, work_of_draw[first], owners[first], keys[first], sizes, cells[first])


def _means(sums: torch.Tensor, where: Int64Array, counts: Int64Array) -> torch.Tensor:
    """Sums over equal ``where``, divided by ``counts``: float64."""
    means = sums.new_zeros(len(counts), sums.shape[1], dtype=torch.float64)
    means.index_add_(0, _on(sums, where), sums.double())
    return means.div_(_on(sums, counts).unsqueeze(1))


def _squares(
    sums: torch.Tensor, means: torch.Tensor, where: Int64Array, sizes: Int64Array | None = None
) -> Float64Array:
    """||S_j - n_j mean||^2 by group; without sizes, n_j = 1."""
    centres = means[_on(sums, where)]
    if sizes is not None:
        centres *= _on(sums, sizes).unsqueeze(1)
    return centres.sub_(sums).square_().sum(dim=1).cpu().numpy()


def _twins(
    sums: torch.Tensor, groups: _Groups, chosen: Int64Array, works: int
) -> list[dict[int, float]]:
    """By work and render, from the groups of works with streams: every group with its twin."""
    if not len(chosen):
        return [{} for _ in range(works)]
    order = chosen[np.argsort(groups.owners[chosen] % 2, kind="stable")]
    first, second = order.reshape(2, -1)
    difference = sums[_on(sums, first)].double() - sums[_on(sums, second)]
    squares = difference.square_().sum(dim=1).cpu().numpy()
    return _by_owner(squares / 2.0, groups.works[first], groups.owners[first] // 2, works)


def _spreads(
    sums: torch.Tensor, groups: _Groups, chosen: Int64Array, works: int
) -> list[dict[int, float]]:
    """By work and owner, sum over cells of sum_j c_j ||S_j - n_j mean||^2, c_j as in
    ``estimate_from_moments`` within the cell; from the groups of works whose cells hold more
    than one group."""
    if not len(chosen):
        return [{} for _ in range(works)]
    if len(chosen) < len(groups.sizes):
        sums = sums[_on(sums, chosen)]
    size = groups.sizes[chosen]
    _, cell, counts = _unique(groups.owner_keys[chosen], groups.cells[chosen])
    draws = np.bincount(cell, size).astype(np.int64)
    squares = _squares(sums, _means(sums, cell, draws), cell, size)
    count, total = counts[cell], draws[cell]
    # Equal groups: m / (m - 1); a lone group has no spread to go by.
    weights = np.where(count > 1, count / np.maximum(count - 1.0, 1.0), math.nan)
    # A cell of pairs and a single: groups of unequal sizes.
    for mixed in np.unique(cell[size * count != total]).tolist():
        members = np.flatnonzero(cell == mixed)
        sizes_of_cell: list[int] = size[members].tolist()
        by_size = group_weights(Counter(sizes_of_cell), int(draws[mixed]))
        weights[members] = [by_size[n] for n in sizes_of_cell]
    return _by_owner(weights * squares, groups.works[chosen], groups.owners[chosen], works)


def _by_owner(
    terms: Float64Array, work: Int64Array, owner: Int64Array, works: int
) -> list[dict[int, float]]:
    """Terms summed by (work, owner)."""
    first, where, _ = _unique(work, owner)
    totals = np.bincount(where, terms)
    sums: list[dict[int, float]] = [{} for _ in range(works)]
    rows: Iterable[tuple[int, int, float]] = zip(
        work[first].tolist(), owner[first].tolist(), totals.tolist(), strict=True
    )
    for index, name, total in rows:
        sums[index][name] = total
    return sums


def _unique(major: Int64Array, minor: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Of distinct pairs in ascending order: where each first occurs, the pair of each row, and
    how many rows each has. ``minor`` is 0 or more; both together fit 63 bits."""
    keys = major * (int(minor.max()) + 1) + minor
    _, first, index, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    return first, index, counts


def _on(like: torch.Tensor, values: Int64Array) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device)
