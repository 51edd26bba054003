"""The noise variance that an estimate reports, against the variance of the estimates themselves."""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.sampling.objective import NamedWeighting
from carv_server.sampling.plan import NoiseCoupling, Sampling
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.timesteps import TimestepSampler
from tests.estimators.harness import Oracle, Runs

SEEDS = range(500, 3500)


def ratio_and_error(runs: Runs) -> tuple[float, float]:
    """Mean reported variance over the variance seen between runs, and its standard error.

    Both are means over runs of per-run terms ||g - mean||^2 M/(M-1) and the report, summed over
    renders: the error is that of a ratio of means (delta method).
    """
    deviation = runs.gradients - runs.gradients.mean(axis=0)
    runs_count = len(deviation)
    seen = (deviation**2).sum(axis=(1, 2)) * runs_count / (runs_count - 1)
    reported = runs.variances.sum(axis=1)
    ratio = reported.mean() / seen.mean()
    residual = reported - ratio * seen
    return ratio, residual.std(ddof=1) / np.sqrt(runs_count) / seen.mean()


# One antithetic pair has no variance, and a pair with a single draw only an overestimate.
ESTIMABLE = [
    *((NoiseCoupling.IID, draws) for draws in (2, 3, 4, 5, 7, 8)),
    *((NoiseCoupling.ANTITHETIC, draws) for draws in (4, 5, 7, 8)),
]


@pytest.mark.parametrize(("coupling", "draws"), ESTIMABLE)
@pytest.mark.parametrize("proposal", list(Proposal))
def test_unbiased_for_iid_draws(proposal: Proposal, coupling: NoiseCoupling, draws: int) -> None:
    sampling = Sampling(TimestepSampler.IID, proposal, coupling)
    (runs,) = Oracle(NamedWeighting.SDS).run(sampling, draws, SEEDS)
    ratio, error = ratio_and_error(runs)
    # 20 cases at 4.5 standard errors: a false alarm in 0.02 % of fresh seeds.
    assert abs(ratio - 1.0) < 4.5 * error
    # Sharp enough that a forgotten factor K / (K - 1) is seen at K = 8.
    assert error < 0.03


@pytest.mark.parametrize("draws", [3, 4, 5, 8])
@pytest.mark.parametrize("coupling", list(NoiseCoupling))
@pytest.mark.parametrize(
    "sampler", [TimestepSampler.STRATIFIED, TimestepSampler.GLOBAL, TimestepSampler.NESTED]
)
def test_conservative_under_strata(
    sampler: TimestepSampler, coupling: NoiseCoupling, draws: int
) -> None:
    (runs,) = Oracle(NamedWeighting.SDS).run(
        Sampling(sampler, Proposal.WEIGHT, coupling), draws, SEEDS
    )
    ratio, error = ratio_and_error(runs)
    assert ratio > 1.0 - 4.5 * error


def test_a_pair_and_a_single_overestimate() -> None:
    sampling = Sampling(TimestepSampler.IID, Proposal.PRIOR, NoiseCoupling.ANTITHETIC)
    (runs,) = Oracle(NamedWeighting.SDS).run(sampling, 3, SEEDS)
    ratio, error = ratio_and_error(runs)
    assert ratio > 1.0 + 4.5 * error


@pytest.mark.parametrize(
    ("draws", "coupling"), [(1, NoiseCoupling.IID), (2, NoiseCoupling.ANTITHETIC)]
)
def test_one_group_has_no_variance(draws: int, coupling: NoiseCoupling) -> None:
    sampling = Sampling(TimestepSampler.IID, Proposal.PRIOR, coupling)
    (runs,) = Oracle(NamedWeighting.SDS).run(sampling, draws, range(3))
    assert np.isnan(runs.variances).all()
