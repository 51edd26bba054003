"""Every sampler x proposal x coupling x weighting x K is unbiased for the closed form.

False alarms: 288 cases of 8 z-scores each, 48 with the control variate, and 672 at depth. With
|z| <= 5.0 a case errs with probability at most 8 * 5.7e-7, the suite with 0.5 %; seeds are
fixed, so it either always passes or never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest

from carv_server.sampling.objective import NamedWeighting
from carv_server.sampling.plan import ControlVariate, NoiseCoupling, Sampling
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.timesteps import TimestepSampler
from tests.estimators.harness import (
    Oracle,
    broken_likelihood_ratio,
    broken_sign,
    largest_z,
    misplaced_control,
)

SEEDS = {draws: range(1000, 1000 + 640 // draws) for draws in (1, 2, 5, 8)}
MANY_SEEDS = {draws: range(1000, 1000 + 4096 // draws) for draws in SEEDS}
BOUND = 5.0

FEW_WEIGHTINGS = [NamedWeighting.SDS, NamedWeighting.X0, None]  # bounded, steep, of both signs
EVERY_WEIGHTING = [*NamedWeighting, None]


def over_every_case(
    weightings: Sequence[NamedWeighting | None],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def mark(test: Callable[..., None]) -> Callable[..., None]:
        for case in (
            pytest.mark.parametrize("draws", list(SEEDS)),
            pytest.mark.parametrize("coupling", list(NoiseCoupling)),
            pytest.mark.parametrize("proposal", list(Proposal)),
            pytest.mark.parametrize("sampler", list(TimestepSampler)),
            pytest.mark.parametrize("weighting", weightings),
        ):
            test = case(test)
        return test

    return mark


@cache
def oracle(weighting: NamedWeighting | None) -> Oracle:
    return Oracle(weighting)


@over_every_case(FEW_WEIGHTINGS)
def test_mean_is_the_closed_form_and_a_broken_estimator_is_noticed(
    weighting: NamedWeighting | None,
    sampler: TimestepSampler,
    proposal: Proposal,
    coupling: NoiseCoupling,
    draws: int,
) -> None:
    teacher = oracle(weighting)
    sound, ratio, sign = teacher.run(
        Sampling(sampler, proposal, coupling),
        draws,
        SEEDS[draws],
        [broken_likelihood_ratio, broken_sign],
    )
    expected = teacher.closed_form()
    assert largest_z(sound.gradients, expected) < BOUND
    assert largest_z(ratio.gradients, expected) > BOUND
    assert largest_z(sign.gradients, expected) > BOUND


@pytest.mark.parametrize("draws", [1, 5])
@pytest.mark.parametrize("coupling", list(NoiseCoupling))
@pytest.mark.parametrize("sampler", list(TimestepSampler))
@pytest.mark.parametrize("weighting", FEW_WEIGHTINGS)
def test_the_control_variate_does_not_move_the_mean(
    weighting: NamedWeighting | None,
    sampler: TimestepSampler,
    coupling: NoiseCoupling,
    draws: int,
) -> None:
    teacher = oracle(weighting)
    sampling = Sampling(sampler, Proposal.ADAPTIVE, coupling, ControlVariate.NOISE)
    sound, misplaced = teacher.run(sampling, draws, SEEDS[draws], [misplaced_control])
    expected = teacher.closed_form()
    assert largest_z(sound.gradients, expected) < BOUND
    assert largest_z(misplaced.gradients, expected) > BOUND


@pytest.mark.slow
@over_every_case(EVERY_WEIGHTING)
def test_mean_is_the_closed_form_at_depth(
    weighting: NamedWeighting | None,
    sampler: TimestepSampler,
    proposal: Proposal,
    coupling: NoiseCoupling,
    draws: int,
) -> None:
    teacher = oracle(weighting)
    (runs,) = teacher.run(Sampling(sampler, proposal, coupling), draws, MANY_SEEDS[draws])
    assert largest_z(runs.gradients, teacher.closed_form()) < BOUND
