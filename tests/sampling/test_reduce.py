"""Group moments: equal to the plain formulas, and the same however the draws were cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from carv_server.sampling.plan import effective_sample_size
from carv_server.sampling.reduce import (
    Moments,
    estimate_from_moments,
    group_moments,
    merge_moments,
)


def random_draws(renders: int, groups: list[int]) -> tuple[torch.Tensor, ...]:
    """Values with a large common offset, so that a one-pass variance would lose its digits."""
    generator = torch.Generator().manual_seed(4)
    draws = len(groups)
    values = 1000.0 + torch.randn(renders * draws, 2, 3, generator=generator)
    return (
        values,
        torch.arange(renders).repeat_interleave(draws),
        torch.tensor(groups).repeat(renders),
    )


def estimates(parts: list[dict[tuple[int, int], Moments]], render: int, draws: int):
    sizes = {size for part in parts for (r, size) in part if r == render}
    merged = {
        size: merge_moments([p[render, size] for p in parts if (render, size) in p])
        for size in sizes
    }
    return estimate_from_moments(merged, draws)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 1, 1, 2, 2]])
def test_equal_groups_give_the_sample_variance_of_their_means(groups: list[int]) -> None:
    values, renders, labels = random_draws(2, groups)
    parts = [group_moments(values, renders, labels)]
    for render in range(2):
        flat = values[renders == render].flatten(1).double().numpy()
        means = flat.reshape(len(set(groups)), -1, flat.shape[1]).mean(axis=1)
        mean, variance = estimates(parts, render, len(groups))
        np.testing.assert_allclose(mean.numpy(), flat.mean(axis=0), rtol=1e-14)
        expected = means.var(axis=0, ddof=1).sum() / len(means)
        np.testing.assert_allclose(variance, expected, rtol=1e-9)


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]])
def test_cuts_do_not_matter(groups: list[int]) -> None:
    values, renders, labels = random_draws(3, groups)
    whole = [group_moments(values, renders, labels)]
    boundaries = [0, 2, len(groups), len(groups) + 4, len(values)]
    cut = [group_moments(values[a:b], renders[a:b], labels[a:b]) for a, b in pairwise(boundaries)]
    for render in range(3):
        mean, variance = estimates(whole, render, len(groups))
        cut_mean, cut_variance = estimates(cut, render, len(groups))
        np.testing.assert_allclose(cut_mean.numpy(), mean.numpy(), rtol=1e-13)
        np.testing.assert_allclose(cut_variance, variance, rtol=1e-9)


def test_effective_sample_size() -> None:
    weights = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(effective_sample_size(weights), [4.0, 1.0, 0.0])
