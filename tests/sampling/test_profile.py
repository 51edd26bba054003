"""Bins of a profile cover the prior's support once; their draws are pairs under the prior."""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.sampling.objective import ObjectiveTables, prior_on_range
from carv_server.sampling.plan import Resolved, Sampling, plan_draws, resolve
from carv_server.sampling.profile import (
    BinDraws,
    bin_moments,
    plan_bin,
    profile_from_moments,
    timestep_bins,
)
from carv_server.sampling.schedule import Schedule, flow_schedule
from tests.support.oracle import TIMESTEPS, oracle_schedule


def _masses() -> dict[str, tuple[Schedule, np.ndarray]]:
    rng = np.random.default_rng(0)
    holes = np.where(rng.uniform(size=TIMESTEPS) < 0.7, 0.0, rng.uniform(size=TIMESTEPS))
    few = np.zeros(TIMESTEPS)
    few[[3, 500, 501, 999]] = [1.0, 2.0, 3.0, 4.0]
    return {
        "default range": (oracle_schedule(), prior_on_range(TIMESTEPS, 0.02, 0.98)),
        "whole grid": (oracle_schedule(), prior_on_range(TIMESTEPS, 0.0, 1.0)),
        "holes": (oracle_schedule(), holes / holes.sum()),
        "four timesteps": (oracle_schedule(), few / few.sum()),
        "one timestep": (oracle_schedule(), prior_on_range(TIMESTEPS, 0.5, 0.5)),
        "zero terminal SNR": (flow_schedule(50, 3.0), prior_on_range(50, 0.0, 1.0)),
    }


@pytest.mark.parametrize("case", _masses())
@pytest.mark.parametrize("bins", [2, 24, 64])
def test_bins_cover_the_support_exactly_once(case: str, bins: int) -> None:
    schedule, prior = _masses()[case]
    found = timestep_bins(schedule.log_snr, prior, bins)
    support = np.flatnonzero(prior)
    assert len(found) == min(bins, len(support))
    covered = [t for each in found for t in range(each.first, each.last + 1) if prior[t] > 0]
    assert covered == support.tolist()
    assert all(prior[each.first] > 0 and prior[each.last] > 0 for each in found)
    assert sum(each.mass for each in found) == pytest.approx(1.0, abs=1e-12)
    log_snr = [each.log_snr for each in found]
    assert np.all(np.isfinite(log_snr)) and np.all(np.diff(log_snr) < 0)


def test_bins_are_of_equal_width_in_log_snr_where_the_grid_allows() -> None:
    schedule, prior = oracle_schedule(), prior_on_range(TIMESTEPS, 0.1, 0.98)
    found = timestep_bins(schedule.log_snr, prior, 12)
    starts = schedule.log_snr[[each.first for each in found]]
    widths = -np.diff(starts)
    step = np.abs(np.diff(schedule.log_snr[100:981])).max()  # a bin starts on the grid
    assert np.ptp(widths) <= 2 * step < 0.1 * widths.mean()


def test_draws_of_a_bin_are_antithetic_pairs_under_the_prior() -> None:
    schedule = oracle_schedule()
    mass = np.linspace(1.0, 3.0, TIMESTEPS)
    mass[400:450] = 0.0
    prior = mass / mass.sum()
    bins = timestep_bins(schedule.log_snr, prior, 6)
    seen: set[int] = set()
    for index, where in enumerate(bins):
        plan = plan_bin(where, index, prior, renders=3, draws=1024, seed=5)
        t = plan.timesteps
        assert np.array_equal(t[:, ::2], t[:, 1::2]), "a pair shares its timestep"
        assert np.array_equal(plan.noise_indices[:, ::2], plan.noise_indices[:, 1::2])
        assert np.array_equal(plan.signs[:, ::2], -plan.signs[:, 1::2])
        assert np.all(prior[t] > 0) and t.min() >= where.first and t.max() <= where.last
        assert not seen & set(plan.noise_indices.ravel().tolist())
        seen |= set(plan.noise_indices.ravel().tolist())
        # 1536 independent timesteps: their mean is within 4.5 standard errors of the exact one.
        exact = where.table(prior) / where.mass
        grid = np.arange(TIMESTEPS)
        mean = exact @ grid
        deviation = np.sqrt((exact @ (grid - mean) ** 2) / t[:, ::2].size)
        assert abs(t[:, ::2].mean() - mean) < 4.5 * deviation


def test_a_profile_shares_no_draw_with_an_estimate_of_its_seed() -> None:
    prior = prior_on_range(TIMESTEPS, 0.02, 0.98)
    objective = ObjectiveTables(prior, np.ones(TIMESTEPS), np.ones((1, TIMESTEPS)), -prior)
    resolved: Resolved = resolve(Sampling(), objective, None, 1024)
    estimate = plan_draws(resolved, objective, 1, 1024, seed=5)
    (first, *_) = timestep_bins(oracle_schedule().log_snr, prior, 24)
    profile = plan_bin(first, 0, prior, renders=1, draws=1024, seed=5)
    assert not set(estimate.noise_indices.ravel()) & set(profile.noise_indices.ravel())


def _draws(timesteps: np.ndarray, pairs: int, scale: float) -> BinDraws:
    """One render, h the same vector (scale, 0) at every draw."""
    shape = (1, pairs)
    return BinDraws(
        timesteps=np.resize(timesteps, shape),
        squared_norms=np.full(shape, scale**2),
        noise_products=np.zeros(shape),
        noise_norms=np.full(shape, 2.0),
        mean=np.array([[scale, 0.0]]),
        deviation=np.zeros(1),
    )


@pytest.mark.parametrize("pairs", [1, 4])
def test_an_integrand_without_noise_has_the_variance_of_its_size_alone(pairs: int) -> None:
    """h = c_b in bin b, w = 1: the prior has the variance of c_b, the oracle, here exact, none."""
    prior = np.full(4, 0.25)
    objective = ObjectiveTables(prior, np.ones(4), np.ones((1, 4)), np.zeros(4))
    bins = timestep_bins(np.array([2.0, 1.0, -1.0, -2.0]), prior, 4)
    sizes = [1.0, 2.0, 3.0, 6.0]
    moments = [
        bin_moments(_draws(np.array([t]), pairs, size), objective) for t, size in enumerate(sizes)
    ]
    gradient = np.array([[np.mean(sizes), 0.0]])
    profile = profile_from_moments(bins, moments, gradient, objective)
    np.testing.assert_allclose(profile.oracle, np.array(sizes) / 12.0, rtol=1e-12)
    assert [each.second_moment for each in moments] == [1.0, 4.0, 9.0, 36.0]
    if pairs == 1:  # nothing to tell a mean from its noise
        unknown = [each.squared_mean for each in moments] + [profile.squared_gradient]
        assert np.all(np.isnan([*unknown, profile.prior_variance, moments[0].second_moment_error]))
        return
    assert profile.squared_gradient == pytest.approx(9.0)
    assert profile.prior_variance == pytest.approx(np.var(sizes))
    assert profile.weight_variance == pytest.approx(np.var(sizes))
    assert profile.oracle_variance == pytest.approx(0.0, abs=1e-12)


def test_an_integrand_that_vanishes_has_no_variance_and_any_oracle() -> None:
    prior = np.full(4, 0.25)
    objective = ObjectiveTables(prior, np.arange(4.0), np.ones((1, 4)), np.zeros(4))
    bins = timestep_bins(np.array([2.0, 1.0, -1.0, -2.0]), prior, 2)
    moments = [bin_moments(_draws(np.array([0, 1]), 2, 0.0), objective) for _ in bins]
    profile = profile_from_moments(bins, moments, np.zeros((1, 2)), objective)
    np.testing.assert_allclose(profile.oracle, np.arange(4.0) / 6.0)
    assert profile.prior_variance == profile.oracle_variance == 0.0
