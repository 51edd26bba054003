"""Group moments: equal to the plain formulas, and the same however the draws were cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from carv_server.sampling.group_layout import DrawLabels
from carv_server.sampling.group_sums import reduce_groups, reduce_works
from carv_server.sampling.plan import effective_sample_size
from carv_server.sampling.reduce import (
    Reduction,
    estimate_from_moments,
    merge_reductions,
)


def random_draws(renders: int, groups: list[int]) -> tuple[Any, ...]:
    """Values with a large common offset, so that a one-pass variance would lose its digits."""
    generator = torch.Generator().manual_seed(4)
    draws = len(groups)
    values = 1000.0 + torch.randn(renders * draws, 2, 3, generator=generator)
    return (
        values,
        np.repeat(np.arange(renders), draws),
        np.tile(groups, renders),
    )


def estimates(parts: list[Reduction], render: int, draws: int):
    whole = merge_reductions(parts)
    by_size = {size: m for (r, size), m in whole.moments.items() if r == render}
    return estimate_from_moments(by_size, draws, whole.spreads.get(render))


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 1, 1, 2, 2]])
def test_equal_groups_give_the_sample_variance_of_their_means(groups: list[int]) -> None:
    values, renders, labels = random_draws(2, groups)
    parts = [reduce_groups(values, renders, labels, labels)]
    for render in range(2):
        flat = values[renders == render].flatten(1).double().numpy()
        means = flat.reshape(len(set(groups)), -1, flat.shape[1]).mean(axis=1)
        mean, variance = estimates(parts, render, len(groups))
        np.testing.assert_allclose(mean.numpy(), flat.mean(axis=0), rtol=1e-14)
        expected = means.var(axis=0, ddof=1).sum() / len(means)
        np.testing.assert_allclose(variance, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("groups", "cells"),
    [
        ([0, 0, 1, 1, 2], [0, 0, 0, 0, 0]),
        ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]),
        ([0, 1, 2, 3, 4], [0, 0, 1, 1, 1]),
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
    ],
)
def test_cuts_between_cells_do_not_matter(groups: list[int], cells: list[int]) -> None:
    values, renders, labels = random_draws(3, groups)
    owners = np.tile(cells, 3)
    draws = len(groups)
    inner = [i for i in range(1, draws) if cells[i] != cells[i - 1]]
    boundaries = sorted({0, draws, 2 * draws, 3 * draws, *inner, *(draws + i for i in inner)})
    whole = [reduce_groups(values, renders, labels, owners)]
    cut = [
        reduce_groups(values[a:b], renders[a:b], labels[a:b], owners[a:b])
        for a, b in pairwise(boundaries)
    ]
    for render in range(3):
        mean, variance = estimates(whole, render, draws)
        cut_mean, cut_variance = estimates(cut, render, draws)
        np.testing.assert_allclose(cut_mean.numpy(), mean.numpy(), rtol=1e-13)
        np.testing.assert_allclose(cut_variance, variance, rtol=1e-9)


def test_collapsed_strata_are_the_squared_differences_of_neighbours() -> None:
    values, renders, labels = random_draws(1, [0, 0, 1, 1, 2, 2, 3, 3])
    cells = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    _, variance = estimates([reduce_groups(values, renders, labels, cells)], 0, 8)
    sums = values.flatten(1).double().reshape(4, 2, -1).sum(1).numpy()
    differences = ((sums[0::2] - sums[1::2]) ** 2).sum()
    np.testing.assert_allclose(variance, differences / 8**2, rtol=1e-9)


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_spreads_keep_their_digits_between_strata_that_are_far_apart(groups: list[int]) -> None:
    """Pairs, and cells of three."""
    cells = np.array(groups) // (2 if len(groups) == 8 else 3)
    generator = torch.Generator().manual_seed(5)
    values = 1e7 * torch.arange(9.0)[cells] + torch.randint(
        -4, 5, (6, len(cells)), generator=generator
    )
    labels = np.array(groups)
    reduction = reduce_groups(values.T.contiguous(), np.zeros_like(labels), labels, cells)
    flat = values.T.double().numpy()
    expected = 0.0
    for cell in set(cells.tolist()):
        names = sorted(set(labels[cells == cell].tolist()))
        sums = np.stack([flat[labels == name].sum(axis=0) for name in names])
        expected += len(names) * sums.var(axis=0, ddof=1).sum()
    assert reduction.spreads == pytest.approx({0: expected}, rel=1e-9)


def test_three_groups_in_a_cell_count_their_sample_variance_three_times() -> None:
    values, renders, labels = random_draws(1, [0, 1, 2])
    _, variance = estimates([reduce_groups(values, renders, labels, np.zeros_like(labels))], 0, 3)
    flat = values.flatten(1).double().numpy()
    np.testing.assert_allclose(variance, 3 * flat.var(axis=0, ddof=1).sum() / 3**2, rtol=1e-9)


def test_effective_sample_size() -> None:
    weights = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(effective_sample_size(weights), [4.0, 1.0, 0.0])


def test_works_reduced_together_are_each_reduced_alone() -> None:
    """Of other sizes, with cells, with groups out of order, and with two streams."""
    values, renders, labels = random_draws(2, [0, 0, 1, 1, 2, 2, 3])
    cells = np.tile([0, 0, 0, 0, 1, 1, 1], 2)
    paired, owners, numbers = random_draws(1, [0, 0, 1, 1, 0, 0, 1, 1])
    streams = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    parts = [
        (values, DrawLabels(renders, labels, cells)),
        (
            values[:4],
            DrawLabels(np.array([5, 5, 2, 2]), np.array([9, 3, 3, 9]), labels[:4]),
        ),
        (paired, DrawLabels(owners, numbers, np.zeros_like(numbers), streams)),
        (values[3:4], DrawLabels(renders[3:4], labels[3:4], labels[3:4])),
    ]
    together = reduce_works(torch.cat([part for part, _ in parts]), [label for _, label in parts])
    for (part, label), found in zip(parts, together, strict=True):
        alone = reduce_groups(part, label.renders, label.groups, label.cells, label.streams)
        assert found.moments.keys() == alone.moments.keys()
        for key, moments in alone.moments.items():
            assert found.moments[key].count == moments.count
            np.testing.assert_allclose(found.moments[key].mean, moments.mean, rtol=1e-14)
            np.testing.assert_allclose(found.moments[key].deviation, moments.deviation, rtol=1e-9)
        assert found.spreads == pytest.approx(alone.spreads, rel=1e-9, nan_ok=True)
        assert found.twins == pytest.approx(alone.twins, rel=1e-9)
    sums = paired.flatten(1).double().reshape(4, 2, -1).sum(1)
    expected = float((sums[:2] - sums[2:]).square().sum() / 2)
    assert together[2].twins == pytest.approx({0: expected}, rel=1e-9)
