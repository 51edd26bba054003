"""Group sums of evaluated draws, over the works of a whole microbatch at once: sums and squared
deviations, on the device of the values. What they mean is in ``reduce``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from carv_server.sampling.group_layout import DrawLabels, Layout, Runs, layout_of
from carv_server.sampling.reduce import Moments, Reduction

__all__ = ["reduce_groups", "reduce_works"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


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
    layout = layout_of(works)
    # A draw that is a group of its own has nothing to be added to: float32 is exact.
    sums = flat if layout.groups.block == 1 else _added(flat, layout.groups)
    means, deviations = sums, np.zeros(len(layout.counts))
    if layout.kinds.block != 1:
        means = _added(sums, layout.kinds) / _on(sums, layout.counts).unsqueeze(1)
        deviations = np.bincount(layout.kinds.of, _norms(_off(sums, means, layout.kinds)))
    host_means = means.cpu()
    spreads = _spreads(sums, layout, len(works))
    twins = _twins(sums, layout, len(works))

    reductions: list[Reduction] = []
    for work, (start, stop) in enumerate(pairwise(layout.bounds)):
        # A view would keep the whole microbatch alive for as long as its work's request.
        own = host_means[start:stop].to(torch.float64, copy=len(works) > 1 or means is flat)
        moments = {
            layout.names[i]: Moments(int(layout.counts[i]), own[i - start], float(deviations[i]))
            for i in range(start, stop)
        }
        reductions.append(Reduction(moments, spreads[work], twins[work]))
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


def _added(rows: torch.Tensor, runs: Runs) -> torch.Tensor:
    """Sums of rows, float64 [runs.count, D]."""
    if runs.block:
        return rows.view(runs.count, runs.block, -1).sum(1, dtype=torch.float64)
    sums = rows.new_zeros(runs.count, rows.shape[1], dtype=torch.float64)
    return sums.index_add_(0, _on(sums, runs.of), rows.double())


def _off(
    rows: torch.Tensor, centres: torch.Tensor, runs: Runs, sizes: Int64Array | None = None
) -> torch.Tensor:
    """S_j - n_j centre up to its sign, float64; without sizes, n_j = 1."""
    if runs.block and sizes is None:
        split = rows.view(runs.count, runs.block, -1)
        return (split - centres.unsqueeze(1)).flatten(0, 1)
    own = centres[_on(centres, runs.of)]
    if sizes is not None:
        own *= _on(own, sizes).unsqueeze(1)
    return own.sub_(rows)


def _norms(rows: torch.Tensor) -> Float64Array:
    """Squared, of each row."""
    # One pass, without a copy of the squares. torch.linalg has no types.
    norms = cast("torch.Tensor", torch.linalg.vector_norm(rows, dim=1))  # pyright: ignore[reportUnknownMemberType]
    return norms.square_().cpu().numpy()


def _spreads(sums: torch.Tensor, layout: Layout, works: int) -> list[dict[int, float]]:
    """By work and owner, sum over cells of sum_j c_j ||S_j - n_j mean||^2, c_j as in
    ``estimate_from_moments`` within the cell; from the groups of works whose cells hold more
    than one group."""
    cells = layout.cells
    if cells is None:
        return [{} for _ in range(works)]
    if cells.are_pairs:
        # sum_j ||S_j - mean||^2 = ||S_1 - S_2||^2 / 2, and c_j = 2.
        first, second = sums.view(cells.runs.count, 2, -1).unbind(1)
        found = _norms(first.double() - second)
        return _by_owner(found, cells.works[::2], cells.owners[::2], works)
    if len(cells.chosen) < len(sums):
        sums = sums[_on(sums, cells.chosen)]
    means = _added(sums, cells.runs) / _on(sums, cells.draws).unsqueeze(1)
    found = _norms(_off(sums, means, cells.runs, cells.sizes))
    return _by_owner(cells.weights * found, cells.works, cells.owners, works)


def _twins(sums: torch.Tensor, layout: Layout, works: int) -> list[dict[int, float]]:
    """By work and render, from the groups of works with streams: every group with its twin."""
    twins = layout.twins
    if twins is None:
        return [{} for _ in range(works)]
    difference = sums[_on(sums, twins.first)].double() - sums[_on(sums, twins.second)]
    return _by_owner(_norms(difference) / 2.0, twins.works, twins.renders, works)


def _by_owner(
    terms: Float64Array, work: Int64Array, owner: Int64Array, works: int
) -> list[dict[int, float]]:
    """Terms summed by (work, owner)."""
    sums: list[dict[int, float]] = [{} for _ in range(works)]
    for index, name, term in zip(work.tolist(), owner.tolist(), terms.tolist(), strict=True):
        sums[index][name] = sums[index].get(name, 0.0) + term
    return sums


def _on(like: torch.Tensor, values: Int64Array) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device)
