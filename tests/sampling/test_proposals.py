"""Proposals, the inverse CDF and importance weights, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.sampling.objective import ObjectiveTables, prior_from_mass, prior_on_range
from carv_server.sampling.proposals import (
    DEFENSIVE_SHARE,
    adaptive_table,
    cumulative,
    importance_weights,
    inverse_cdf,
    weight_table,
)


def objective(prior: list[float], weighting: list[float]) -> ObjectiveTables:
    n = len(prior)
    return ObjectiveTables(np.array(prior), np.array(weighting), np.ones((1, n)), np.zeros(n))


def test_weight_is_proportional_to_prior_times_magnitude() -> None:
    table = weight_table(objective([0.0, 0.5, 0.25, 0.25], [9.0, 1.0, -2.0, 0.0]))
    assert table is not None
    np.testing.assert_allclose(table, [0.0, 0.5, 0.5, 0.0], atol=1e-15)


def test_an_infinite_weight_outside_the_prior_does_not_matter() -> None:
    table = weight_table(objective([0.5, 0.5, 0.0], [1.0, 3.0, np.inf]))
    assert table is not None
    np.testing.assert_allclose(table, [0.25, 0.75, 0.0], atol=1e-15)


def test_a_weighting_that_vanishes_under_the_prior_has_no_table() -> None:
    vanishing = objective([1.0, 0.0], [0.0, 1.0])
    assert weight_table(vanishing) is None
    assert adaptive_table(vanishing, np.ones(2), 1e9) is None


def test_adaptive_follows_the_integrands_norm_over_a_floor_of_the_prior() -> None:
    prior, weighting, root = [0.2, 0.3, 0.5], [1.0, -2.0, 1.0], np.array([3.0, 1.0, 0.0])
    table = adaptive_table(objective(prior, weighting), root, 1e9)
    assert table is not None
    share = np.array([0.2 * 3, 0.3 * 2, 0.0]) / 1.2
    expected = (1 - DEFENSIVE_SHARE) * share + DEFENSIVE_SHARE * np.array(prior)
    np.testing.assert_allclose(table, expected, rtol=1e-14)
    assert (np.array(prior) / table).max() <= 1 / DEFENSIVE_SHARE


def test_without_draws_adaptive_is_the_prior_and_trust_grows_with_them() -> None:
    prior = [0.2, 0.3, 0.5]
    case = objective(prior, [0.0, 1.0, 0.0])
    shares = []
    for draws in (0.0, 32.0, 1e9):
        table = adaptive_table(case, np.ones(3), draws)
        assert table is not None
        shares.append(table[0] / prior[0])
    np.testing.assert_allclose(shares, [1.0, 0.5, DEFENSIVE_SHARE])


def test_a_flat_norm_makes_adaptive_the_weight_proposal() -> None:
    flat = objective([0.25] * 4, [1.0, 2.0, 3.0, 0.0])
    table, weight = adaptive_table(flat, np.full(4, 7.0), 1e9), weight_table(flat)
    assert table is not None and weight is not None
    np.testing.assert_allclose((table - DEFENSIVE_SHARE / 4) / (1 - DEFENSIVE_SHARE), weight)


def test_extreme_weightings_stay_finite() -> None:
    table = adaptive_table(objective([1e-300, 1.0], [1e38, 1e-38]), np.array([1e150, 1e-10]), 1e9)
    assert table is not None and np.isfinite(table).all() and np.isclose(table.sum(), 1.0)


def test_inverse_cdf_gives_every_timestep_its_mass() -> None:
    # A fine regular grid of points: exact up to the grid.
    table = np.array([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    points = (np.arange(100_000) + 0.5) / 100_000
    share = np.bincount(inverse_cdf(cumulative(table), points), minlength=6) / 100_000
    np.testing.assert_allclose(share, table, atol=1e-5)


@pytest.mark.parametrize("point", [0.0, 1.0 - 2.0**-53])
def test_the_ends_stay_on_the_support(point: float) -> None:
    # Ten times 0.1 sums to less than 1 in float64.
    table = np.array([0.0, *[0.1] * 10, 0.0])
    assert inverse_cdf(cumulative(table), np.array([point]))[0] == (1 if point == 0 else 10)


def test_importance_weights_average_to_one_under_the_proposal() -> None:
    prior, proposal = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.2, 0.2])
    weights = importance_weights(prior, proposal, np.arange(3))
    assert np.isclose(np.sum(proposal * weights), 1.0, rtol=1e-15)


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [(0.02, 0.98, 20, 980), (0.0, 1.0, 0, 999), (0.29, 0.57, 290, 570), (1.0, 1.0, 999, 999)],
)
def test_ranges_include_both_ends(low: float, high: float, first: int, last: int) -> None:
    prior = prior_on_range(1000, low, high)
    support = np.flatnonzero(prior)
    assert (support[0], support[-1]) == (first, last)
    assert np.isclose(prior.sum(), 1.0) and len(np.unique(prior[support])) == 1


def test_masses_near_the_float_limit_normalise() -> None:
    np.testing.assert_allclose(prior_from_mass([1e308, 1e308, 0.0]), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("mass", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_bad_masses_are_refused(mass: list[float]) -> None:
    with pytest.raises(ValueError, match="mass"):
        prior_from_mass(mass)
