"""Where points fall: strata, permutations, marginal laws, and exact reductions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from carv.noise import philox4x32
from carv_server.sampling import timesteps
from carv_server.sampling.philox import one_philox4x32
from carv_server.sampling.timesteps import TimestepSampler, place_points

# One fixed seed each; a Kolmogorov-Smirnov p-value below this has probability 1e-4 a test.
ALARM = 1e-4


@pytest.mark.parametrize("sampler", list(TimestepSampler))
@pytest.mark.parametrize(("renders", "draws"), [(1, 1), (1, 8), (5, 1), (3, 4)])
def test_points_are_marginally_uniform(sampler: TimestepSampler, renders: int, draws: int) -> None:
    # One point of each seed: independent, whatever the coupling within a request. A random
    # entry stands for the average over render and draw.
    rng = np.random.default_rng(3)
    points = [
        rng.choice(place_points(sampler, renders, draws, seed).reshape(-1)) for seed in range(2000)
    ]
    assert stats.kstest(points, "uniform").pvalue > ALARM


@pytest.mark.parametrize("sampler", [TimestepSampler.STRATIFIED, TimestepSampler.NESTED])
def test_every_render_has_one_point_in_each_of_k_strata(sampler: TimestepSampler) -> None:
    for seed in range(50):
        points = place_points(sampler, 4, 6, seed)
        assert np.array_equal(np.floor(points * 6), np.tile(np.arange(6), (4, 1)))


@pytest.mark.parametrize("sampler", [TimestepSampler.GLOBAL, TimestepSampler.NESTED])
def test_the_request_has_one_point_in_each_of_rk_strata(sampler: TimestepSampler) -> None:
    for seed in range(50):
        points = place_points(sampler, 4, 6, seed)
        assert np.array_equal(np.sort(np.floor(points * 24), axis=None), np.arange(24))


def test_nested_deals_each_stratum_afresh() -> None:
    # Which render gets the lowest cell of stratum 0 and of stratum 1: independent, uniform.
    lowest = np.array(
        [place_points(TimestepSampler.NESTED, 3, 2, seed).argmin(axis=0) for seed in range(1800)]
    )
    table = np.histogram2d(lowest[:, 0], lowest[:, 1], bins=(3, 3))[0]
    assert stats.chisquare(table.reshape(-1)).pvalue > ALARM


def test_global_deals_strata_to_renders_at_random() -> None:
    owner = [place_points(TimestepSampler.GLOBAL, 4, 1, seed).argmin() for seed in range(2000)]
    assert stats.chisquare(np.bincount(owner, minlength=4)).pvalue > ALARM


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_exact_reductions(seed: int) -> None:
    iid, stratified, everywhere, nested = TimestepSampler
    same = np.testing.assert_array_equal
    same(place_points(stratified, 5, 1, seed), place_points(iid, 5, 1, seed))
    same(place_points(nested, 1, 6, seed), place_points(stratified, 1, 6, seed))
    same(place_points(nested, 6, 1, seed), place_points(everywhere, 6, 1, seed))


@pytest.mark.parametrize("sampler", list(TimestepSampler))
def test_a_pure_function_of_the_seed(sampler: TimestepSampler) -> None:
    first = place_points(sampler, 3, 5, 11)
    assert np.array_equal(first, place_points(sampler, 3, 5, 11))
    assert not np.array_equal(first, place_points(sampler, 3, 5, 12))
    assert first.min() >= 0 and first.max() < 1


def test_published_points() -> None:
    """The law of points is part of the contract: these must not change with a library."""
    points = place_points(TimestepSampler.NESTED, 2, 2, 42)
    np.testing.assert_allclose(points, PUBLISHED, rtol=0, atol=1e-15)


PUBLISHED = np.array(
    [[0.0315078955029513, 0.5680313860552698], [0.3254588055660702, 0.8257004385009497]]
)


@pytest.mark.parametrize("seed", [0, 42, 2**64 - 1])
def test_one_counter_by_integers_is_the_reference(seed: int) -> None:
    counters = np.random.default_rng(seed % 97).integers(0, 2**32, size=(20, 4))
    for c0, c1, c2, c3 in counters.tolist():
        found = one_philox4x32(c0, c1, c2, c3, seed)
        assert list(found) == philox4x32([c0, c1, c2, c3], seed).tolist()


@pytest.mark.parametrize("sampler", list(TimestepSampler))
def test_few_points_follow_the_law_of_many(
    sampler: TimestepSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for renders, draws in [(1, 1), (1, 8), (8, 1), (2, 3)]:
        few = place_points(sampler, renders, draws, 2**63 + 5, stream=3)
        with monkeypatch.context() as patch:
            patch.setattr(timesteps, "_FEW", 0)
            np.testing.assert_array_equal(
                few, place_points(sampler, renders, draws, 2**63 + 5, stream=3)
            )
