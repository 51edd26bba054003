"""Plans from the client's own draws, and what is cached between plans."""

from __future__ import annotations

import numpy as np

from carv_server.sampling.objective import ObjectiveTables, prior_on_range
from carv_server.sampling.plan import Sampling, explicit_plan, plan_draws, resolve


def test_draws_that_share_a_noise_index_are_one_group_of_their_render() -> None:
    rng = np.random.default_rng(1)
    indices = rng.integers(0, 5, size=(40, 9))
    ones = np.ones(indices.shape)
    plan = explicit_plan(np.zeros_like(indices), indices, ones, ones)
    for row, groups in zip(indices, plan.groups, strict=True):
        np.testing.assert_array_equal(groups, np.unique(row, return_inverse=True)[1])


def test_plans_of_one_size_share_what_does_not_depend_on_the_seed_and_cannot_spoil_it() -> None:
    n = 100
    objective = ObjectiveTables(
        prior_on_range(n, 0.0, 1.0), np.ones(n), np.ones((1, n)), -np.ones(n)
    )
    resolved = resolve(Sampling(), objective, None, 4)
    first, second = (plan_draws(resolved, objective, 2, 4, seed, stream=1) for seed in (1, 2))
    assert not np.array_equal(first.timesteps, second.timesteps)
    np.testing.assert_array_equal(first.noise_indices, (1 << 20) + np.array([[0, 0, 1, 1]] * 2))
    for name in ("groups", "cells", "signs"):
        assert not getattr(first, name).flags.writeable
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
