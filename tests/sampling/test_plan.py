"""Plans from the client's own draws, and what is cached between plans."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from carv_server.sampling.objective import ObjectiveTables, prior_on_range
from carv_server.sampling.plan import (
    Sampling,
    explicit_plan,
    plan_at_points,
    plan_draws,
    resolve,
)
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.timesteps import TimestepSampler, place_points


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


@pytest.mark.parametrize("sampler", TimestepSampler)
@pytest.mark.parametrize("proposal", [Proposal.PRIOR, Proposal.WEIGHT])
def test_a_lone_draw_is_planned_as_any_other(sampler: TimestepSampler, proposal: Proposal) -> None:
    n = 50
    weighting = np.random.default_rng(2).normal(size=n)
    objective = ObjectiveTables(prior_on_range(n, 0.1, 0.7), weighting, np.ones((1, n)), np.ones(n))
    resolved = resolve(Sampling(sampler=sampler, proposal=proposal), objective, None, 1)
    resolved = replace(resolved, control=np.random.default_rng(4).normal(size=n))
    drawn: set[int] = set()
    for seed in range(300):
        points = place_points(sampler, 1, 1, seed, stream=3)
        expected = plan_at_points(resolved, objective, points, first_noise_index=3 << 20)
        plan = plan_draws(resolved, objective, 1, 1, seed, stream=3)
        for field in fields(plan):
            ours, theirs = getattr(plan, field.name), getattr(expected, field.name)
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
            assert np.asarray(ours).dtype == np.asarray(theirs).dtype, field.name
        drawn.add(plan.timesteps.item())
    assert len(drawn) > 20
