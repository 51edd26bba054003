"""What the samplers are for: less variance at the same K. The bounds are the worst that theory
allows, not what was measured; figures are the benchmark's business."""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.sampling.objective import NamedWeighting
from carv_server.sampling.plan import DEFAULT_SAMPLING, NoiseCoupling, Sampling
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.timesteps import TimestepSampler
from tests.estimators.harness import Oracle

SEEDS = range(2000, 2800)
PLAIN = Sampling(TimestepSampler.IID, Proposal.PRIOR, NoiseCoupling.IID)


def variance(sampling: Sampling, draws: int, *, of_mean: bool = False) -> float:
    """tr Cov summed over renders, or of the mean over renders."""
    (runs,) = Oracle(NamedWeighting.SDS).run(sampling, draws, SEEDS)
    gradients = runs.gradients.mean(axis=1, keepdims=True) if of_mean else runs.gradients
    return float(gradients.var(axis=0, ddof=1).sum())


@pytest.mark.parametrize("draws", [2, 8])
@pytest.mark.parametrize("sampler", [TimestepSampler.STRATIFIED, TimestepSampler.NESTED])
def test_strata_never_lose_within_a_render(sampler: TimestepSampler, draws: int) -> None:
    stratified = variance(Sampling(sampler, Proposal.PRIOR, NoiseCoupling.IID), draws)
    # 5 % covers the error of two variances over 800 runs of 96 dimensions.
    assert stratified < 1.05 * variance(PLAIN, draws)


def test_global_strata_help_the_mean_over_renders_at_one_draw() -> None:
    sampling = Sampling(TimestepSampler.GLOBAL, Proposal.PRIOR, NoiseCoupling.IID)
    assert variance(sampling, 1, of_mean=True) < 1.05 * variance(PLAIN, 1, of_mean=True)


def test_the_default_at_eight_draws_beats_plain_draws() -> None:
    # eps enters this teacher linearly, so antithetic pairs alone remove most of its variance.
    assert variance(DEFAULT_SAMPLING, 8) < 0.5 * variance(PLAIN, 8)


def test_variance_of_plain_draws_falls_as_one_over_k() -> None:
    assert np.isclose(variance(PLAIN, 8) * 8, variance(PLAIN, 1), rtol=0.15)
