"""What the samplers are for: less variance at the same K. The bounds are the worst that theory
allows, not what was measured; figures are the benchmark's business."""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.sampling.objective import NamedWeighting
from carv_server.sampling.plan import ControlVariate, NoiseCoupling, Sampling
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
    assert variance(Sampling(), 8) < 0.5 * variance(PLAIN, 8)


def test_variance_of_plain_draws_falls_as_one_over_k() -> None:
    assert np.isclose(variance(PLAIN, 8) * 8, variance(PLAIN, 1), rtol=0.15)


def test_the_adaptive_proposal_is_no_worse_than_the_better_heuristic() -> None:
    """At K = 1 the least variance belongs to q proportional to p |w| sqrt(m2): what is learned
    from 1,536 draws, with 5 % of the prior mixed in, must stay within 10 % of prior and weight."""

    def plain(proposal: Proposal) -> float:
        return variance(Sampling(TimestepSampler.IID, proposal, NoiseCoupling.IID), 1)

    assert plain(Proposal.ADAPTIVE) < 1.1 * min(plain(Proposal.PRIOR), plain(Proposal.WEIGHT))


def test_the_noise_control_variate_takes_out_what_is_linear_in_the_noise() -> None:
    """This teacher is linear in eps given the component, so that a fitted c(t) removes the
    noise's variance where no antithetic pairs do it; what is left is that of t in its strata
    and of c, which holds for a bin and not for a timestep."""

    def of(control: ControlVariate) -> float:
        sampler = TimestepSampler.STRATIFIED
        return variance(Sampling(sampler, None, NoiseCoupling.IID, control), 8)

    # 0.58 on these seeds; each variance is known to about 5 %.
    assert of(ControlVariate.NOISE) < 0.75 * of(ControlVariate.NONE)
