"""Which draws of a microbatch are summed together: index arithmetic on the host, the same for every
microbatch of a run, and so kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from carv_server.sampling.reduce import group_weights

__all__ = ["Cells", "DrawLabels", "Layout", "Runs", "Twins", "layout_of"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_MOST_DRAWS = 4096  # of a layout that is kept

_Key = tuple[bytes, bytes, bytes, bytes | None]


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
class Runs:
    """Which sum each row goes into.

    Attributes:
        of: int64 [rows].
        count: of sums.
        block: rows of each sum, where they are neighbours and equally many in each; 0 elsewhere.
    """

    of: Int64Array
    count: int
    block: int


@dataclass(frozen=True)
class Cells:
    """Cells of more than one group.

    Attributes:
        chosen: groups of the works that have such cells; the rest is by chosen group, but for
            ``draws``.
        sizes: draws of the group.
        weights: c_j of ``estimate_from_moments`` within the cell; NaN for a cell of one group.
        runs: into cells.
        draws: by cell.
        are_pairs: whether every group is one of two neighbours of equal size that make a cell.
    """

    chosen: Int64Array
    sizes: Int64Array
    weights: Float64Array
    works: Int64Array
    owners: Int64Array
    runs: Runs
    draws: Int64Array
    are_pairs: bool


@dataclass(frozen=True)
class Twins:
    """Groups of the first and of the second stream, twin by twin, and whose they are."""

    first: Int64Array
    second: Int64Array
    works: Int64Array
    renders: Int64Array


@dataclass(frozen=True)
class Layout:
    """Groups are sorted by work, owner and group; kinds, the groups of one owner and one size, by
    work, owner and size.

    Attributes:
        groups: runs of draws into groups.
        kinds: runs of groups into kinds.
        names: (owner, size) by kind.
        counts: of groups, by kind.
        bounds: the i-th work's kinds are ``bounds[i] .. bounds[i + 1]``.
    """

    groups: Runs
    kinds: Runs
    names: Sequence[tuple[int, int]]
    counts: Int64Array
    bounds: Sequence[int]
    cells: Cells | None
    twins: Twins | None


def layout_of(works: Sequence[DrawLabels]) -> Layout:
    """The layout of works whose draws are one after another."""
    make = _layout if sum(len(work.renders) for work in works) <= _MOST_DRAWS else _made
    return make(tuple([_key(work) for work in works]))


def _key(work: DrawLabels) -> _Key:
    streams = None if work.streams is None else work.streams.tobytes()
    return (work.renders.tobytes(), work.groups.tobytes(), work.cells.tobytes(), streams)


def _labels(key: _Key) -> DrawLabels:
    arrays = [None if part is None else np.frombuffer(part, dtype=np.int64) for part in key]
    renders, groups, cells, streams = arrays
    assert renders is not None and groups is not None and cells is not None
    return DrawLabels(renders, groups, cells, streams)


def _made(keys: tuple[_Key, ...]) -> Layout:
    works = [_labels(key) for key in keys]
    work_of_draw = np.repeat(np.arange(len(works)), [len(work.renders) for work in works])
    owner_of_draw = np.concatenate([work.owners for work in works])
    span = int(owner_of_draw.max()) + 1
    keys_of_draw = work_of_draw * span + owner_of_draw
    first, of_draw, sizes = _unique(keys_of_draw, np.concatenate([work.groups for work in works]))
    group_works, owners = work_of_draw[first], owner_of_draw[first]
    owner_keys = keys_of_draw[first]
    cells = np.concatenate([work.cells for work in works])[first]

    kinds, kind_of_group, counts = _unique(owner_keys, sizes)
    uneven = np.array([not np.array_equal(work.cells, work.groups) for work in works])
    streamed = np.array([work.streams is not None for work in works])
    return Layout(
        groups=_runs(of_draw, len(first)),
        kinds=_runs(kind_of_group, len(kinds)),
        names=list(zip(owners[kinds].tolist(), sizes[kinds].tolist(), strict=True)),
        counts=counts,
        bounds=np.searchsorted(group_works[kinds], np.arange(len(works) + 1)).tolist(),
        cells=_cells(
            np.flatnonzero(uneven[group_works]), group_works, owners, owner_keys, sizes, cells
        ),
        twins=_twins(np.flatnonzero(streamed[group_works]), group_works, owners),
    )


_layout = lru_cache(maxsize=64)(_made)


def _runs(of: Int64Array, count: int) -> Runs:
    block = len(of) // count
    alike = block * count == len(of) and np.array_equal(of, np.repeat(np.arange(count), block))
    return Runs(of, count, block if alike else 0)


def _cells(
    chosen: Int64Array,
    works: Int64Array,
    owners: Int64Array,
    owner_keys: Int64Array,
    sizes: Int64Array,
    cells: Int64Array,
) -> Cells | None:
    if not len(chosen):
        return None
    size = sizes[chosen]
    first, cell, counts = _unique(owner_keys[chosen], cells[chosen])
    draws = np.bincount(cell, size).astype(np.int64)
    count, total = counts[cell], draws[cell]
    # Equal groups: m / (m - 1); a lone group has no spread to go by.
    weights = np.where(count > 1, count / np.maximum(count - 1.0, 1.0), math.nan)
    mixed = np.unique(cell[size * count != total])
    # A cell of pairs and a single: groups of unequal sizes.
    for each in mixed.tolist():
        members = np.flatnonzero(cell == each)
        sizes_of_cell: list[int] = size[members].tolist()
        by_size = group_weights(Counter(sizes_of_cell), int(draws[each]))
        weights[members] = [by_size[n] for n in sizes_of_cell]
    runs = _runs(cell, len(first))
    are_pairs = len(chosen) == len(sizes) and runs.block == 2 and not len(mixed)
    return Cells(chosen, size, weights, works[chosen], owners[chosen], runs, draws, are_pairs)


def _twins(chosen: Int64Array, works: Int64Array, owners: Int64Array) -> Twins | None:
    if not len(chosen):
        return None
    order = chosen[np.argsort(owners[chosen] % 2, kind="stable")]
    first, second = order.reshape(2, -1)
    return Twins(first, second, works[first], owners[first] // 2)


def _unique(major: Int64Array, minor: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Of distinct pairs in ascending order: where each first occurs, the pair of each row, and
    how many rows each has. ``minor`` is 0 or more; both together fit 63 bits."""
    keys = major * (int(minor.max()) + 1) + minor
    _, first, index, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    return first, index, counts
