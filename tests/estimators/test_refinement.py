"""Refinement on the oracle teacher, through the server's plan, forward and reduction: exact means,
and errors that are distributed as the stated standard error says.

False alarms: five z-tests at |z| <= 4.5, together 3.4e-5; seeds are fixed.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from carv_server.refine.call import RenderDraws
from carv_server.replicas.forward import evaluate
from carv_server.replicas.protocol import Work
from carv_server.request import RefineRequest
from carv_server.sampling.objective import NamedWeighting
from carv_server.sampling.plan import NoiseCoupling, Sampling, resolve
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.streams import combine
from carv_server.sampling.timesteps import TimestepSampler
from carv_server.scheduling.job import JobResult
from tests.estimators.harness import Oracle

# Renders of one request stand for runs: with strata of their own they share nothing.
DEFAULT = Sampling(TimestepSampler.STRATIFIED)
STRATA = Sampling(TimestepSampler.STRATIFIED, Proposal.PRIOR, NoiseCoupling.IID)
PLAIN = Sampling(TimestepSampler.IID, Proposal.PRIOR, NoiseCoupling.IID)
BOUND = 4.5


@dataclass(frozen=True)
class Refinements:
    """M runs at one state."""

    errors: npt.NDArray[np.float64]
    """[M, D]."""
    variances: npt.NDArray[np.float64]
    draws: npt.NDArray[np.int64]
    spent: float
    """Draws of a run, with those that decided alone."""
    gradient: npt.NDArray[np.float64]

    @property
    def squared(self) -> npt.NDArray[np.float64]:
        return (self.errors**2).sum(axis=1)

    @property
    def largest_z(self) -> float:
        """Along the gradient and along a fixed direction."""
        random = np.random.default_rng(0).normal(size=self.errors.shape[1])
        along = self.errors @ np.stack([self.gradient, random], axis=1)
        z = along.mean(axis=0) / (along.std(axis=0, ddof=1) / math.sqrt(len(along)))
        return float(np.abs(z).max())


@cache
def oracle() -> Oracle:
    return Oracle(NamedWeighting.SDS)


@cache
def refined(
    state: int, sampling: Sampling, target: float, runs: int, most: int = 4096
) -> Refinements:
    teacher = oracle()
    gradient = teacher.closed_form()[state]
    request = RefineRequest(
        latents=np.repeat(teacher.latents[state : state + 1], runs, axis=0),
        reference_latents=None,
        branches=teacher._branches,
        objective=teacher.objective,
        sampling=sampling,
        history="",
        seed=17 + state,
        target=target,
        max_draws=most,
        max_seconds=None,
    )

    async def submit(work: Work) -> JobResult:
        (result,) = evaluate(teacher._teacher, [work])
        return JobResult(result.reduction, result.residuals, None, 0.0, 0.0)

    resolved = resolve(sampling, teacher.objective, teacher.past, most // 2)
    call = RenderDraws(request, resolved, submit)

    async def main() -> None:
        await asyncio.gather(*(render.run() for render in call.renders))

    asyncio.run(main())
    parts = [combine(*render.used()) for render in call.renders]
    return Refinements(
        np.stack([part.mean for part in parts]) - gradient,
        np.array([part.variance for part in parts]),
        np.array([part.draws for part in parts]),
        call.blocks.draws_spent / runs,
        gradient,
    )


@pytest.mark.parametrize(
    ("state", "sampling", "target", "runs"),
    [
        (0, DEFAULT, 0.05, 60),
        (1, PLAIN, 0.1, 60),
        pytest.param(0, STRATA, 0.03, 150, marks=pytest.mark.slow),
        pytest.param(0, PLAIN, 0.1, 150, marks=pytest.mark.slow),
        pytest.param(2, PLAIN, 0.1, 150, marks=pytest.mark.slow),
    ],
)
def test_means_are_exact_and_errors_as_stated(
    state: int, sampling: Sampling, target: float, runs: int
) -> None:
    """The ratio of mean stated variance to mean squared error, within three times what so many
    squared errors know of their mean: 1.2 of it each, with the few directions that the oracle's
    error has."""
    found = refined(state, sampling, target, runs)
    assert len(np.unique(found.draws)) > 5, "the ends do not vary: nothing is shown"
    assert found.largest_z <= BOUND
    ratio = found.variances.mean() / found.squared.mean()
    assert ratio == pytest.approx(1.0, abs=3.0 * 1.2 / math.sqrt(runs))


@pytest.mark.slow
@pytest.mark.parametrize(("state", "sampling", "target"), [(0, DEFAULT, 0.05), (2, PLAIN, 0.1)])
def test_the_claim_over_a_thousand_runs(state: int, sampling: Sampling, target: float) -> None:
    """Mean squared error over mean stated variance within 0.12 of one (1000 squared errors: 4 %;
    the default's last blocks are priced by larger ones: up to 10 %). And of ||error|| over the
    stated standard error: the median below 1, since squared errors are skewed, and 95 % below 2.4,
    where two directions of equal variance would have 95 % below sqrt(3) with a variance that is
    known, and these have one that was estimated from a dozen pairs."""
    found = refined(state, sampling, target, 1000)
    assert found.largest_z <= BOUND
    assert found.squared.mean() / found.variances.mean() == pytest.approx(1.0, abs=0.12)
    ratio = np.sqrt(found.squared / found.variances)
    assert 0.6 < np.median(ratio) < 1.0
    assert 1.4 < np.quantile(ratio, 0.95) < 2.4


@pytest.mark.slow
@pytest.mark.parametrize("state", [0, 1, 2])
def test_draws_are_near_what_an_oracle_would_spend(state: int) -> None:
    """Independent draws: an oracle needs W(1) / (target ||g||)^2. We start with 24, look again at
    48 and 96, and know the variance from 12 to 48 draws of a law with few directions, which takes
    up to a third more; the error reached is the target's within 15 %."""
    target = 0.1
    runs = oracle().run(PLAIN, 64, range(5000, 5400))[0]
    gradient = oracle().closed_form()[state]
    single = 64 * ((runs.gradients[:, state] - gradient) ** 2).sum(axis=1).mean()
    needed = single / (target**2 * gradient @ gradient)
    found = refined(state, PLAIN, target, 200)
    assert 0.9 < found.spent / needed < 1.35
    reached = math.sqrt(found.squared.mean() / (gradient @ gradient))
    assert reached == pytest.approx(target, rel=0.15)


def test_a_budget_ends_it() -> None:
    found = refined(0, PLAIN, 0.01, 50, most=41)
    assert set(found.draws) == {40}
    assert found.largest_z <= BOUND
