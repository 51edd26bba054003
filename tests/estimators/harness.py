"""Runs the server's own estimator (plan, forward, reduction) on the oracle teacher, many seeds at
a time, and states the closed form it must agree with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import torch

from carv_server.estimate import reduce_moments
from carv_server.replicas.forward import evaluate
from carv_server.replicas.protocol import Branch, Conditioning, Work, WorkResult
from carv_server.rows import make_work
from carv_server.sampling.objective import (
    NamedWeighting,
    ObjectiveTables,
    prior_on_range,
    weighting_values,
)
from carv_server.sampling.past import Past, empty_statistics, past_on_grid, record_draws
from carv_server.sampling.plan import DrawPlan, NoiseCoupling, Sampling, plan_at_points, resolve
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.timesteps import TimestepSampler, place_points
from carv_server.teachers.analytic import AnalyticTeacher
from tests.support.oracle import EVENT_SHAPE, oracle_mixture, oracle_schedule

__all__ = [
    "Oracle",
    "Runs",
    "broken_likelihood_ratio",
    "broken_sign",
    "largest_z",
    "misplaced_control",
    "table_weighting",
]

Float64Array = npt.NDArray[np.float64]
Mutation = Callable[[Work], Work]

_CONDITIONAL, _NEGATIVE = 1, 2
_GUIDANCE = 3.0
_PAST_SEEDS = range(9_000_000, 9_000_064)  # of no test's own draws


def table_weighting() -> Float64Array:
    """A client's own w(t): zero on one stretch, negative on another."""
    t = np.linspace(0.0, 1.0, len(oracle_schedule()))
    return np.where((t > 0.2) & (t < 0.3), 0.0, np.sin(7.0 * t) + 0.4)


@dataclass(frozen=True)
class Runs:
    """Independent estimates of one objective.

    Attributes:
        gradients: float64 [M, R, D].
        variances: float64 [M, R], each estimate's own noise variance.
    """

    gradients: Float64Array
    variances: Float64Array


class Oracle:
    """Guidance between two mixture components, one coefficient depending on t, at three states
    of x: on the manifold, between components, and far off."""

    def __init__(self, weighting: NamedWeighting | None) -> None:
        """``weighting`` None takes ``table_weighting``."""
        self._mixture, schedule = oracle_mixture(), oracle_schedule()
        self._teacher = AnalyticTeacher(self._mixture, schedule)
        means = self._mixture.means
        noise = np.random.default_rng(1).normal(size=EVENT_SHAPE)
        self.latents = np.stack(
            [means[1] + 0.3 * noise, (means[0] + means[2]) / 2, 2.5 * noise]
        ).astype(np.float32)
        timesteps = len(schedule)
        ramp = np.linspace(1.0, 0.2, timesteps)
        self.objective = ObjectiveTables(
            prior=prior_on_range(timesteps, 0.02, 0.98),
            weighting=table_weighting()
            if weighting is None
            else weighting_values(weighting, schedule),
            branch_coefficients=np.stack([_GUIDANCE * ramp, 1.0 - _GUIDANCE * ramp]),
            noise_coefficient=-np.ones(timesteps),
        )
        self._branches = [
            Branch([Conditioning(f"class-{label}", {"class_label": torch.tensor(label)})])
            for label in (_CONDITIONAL, _NEGATIVE)
        ]

    @cached_property
    def past(self) -> Past:
        """What 64 requests of 8 plain draws for each render taught."""
        plain = Sampling(TimestepSampler.IID, Proposal.PRIOR, NoiseCoupling.IID)
        work, _ = self._work(plain, 8, _PAST_SEEDS, None)
        (result,) = evaluate(self._teacher, [work])
        assert result.residuals is not None
        past = past_on_grid(
            record_draws(
                empty_statistics(),
                oracle_schedule(),
                work.timesteps,
                result.residuals,
                memory=1e6,
            ),
            oracle_schedule(),
        )
        assert past is not None
        return past

    def closed_form(self) -> Float64Array:
        """g_r = sum_t p(t) w(t) sum_j a_j(t) E_eps[eps_hat_j], float64 [R, D]; d eps has mean 0."""
        schedule, objective = oracle_schedule(), self.objective
        combined = sum(
            coefficient[None, :, None]
            * self._mixture.expected_noise(self.latents, label, schedule).reshape(
                len(self.latents), len(schedule), -1
            )
            for coefficient, label in zip(
                objective.branch_coefficients, (_CONDITIONAL, _NEGATIVE), strict=True
            )
        )
        weights = np.where(objective.prior > 0, objective.prior * objective.weighting, 0.0)
        return np.einsum("t,rtd->rd", weights, combined)

    def run(
        self,
        sampling: Sampling,
        draws: int,
        seeds: range,
        mutations: Sequence[Mutation] = (),
    ) -> list[Runs]:
        """One estimate for each seed, K draws for each of the three renders; then the same draws
        once more under each mutation.

        The seeds' plans become one work over all their renders: one large reduction in place
        of many small ones. The noise of different renders is independent.
        """
        work, plan = self._work(sampling, draws, seeds, self.past)
        works = [work, *(mutation(work) for mutation in mutations)]
        results = evaluate(self._teacher, works)
        return [_runs(result, plan, len(self.latents)) for result in results]

    def _work(
        self, sampling: Sampling, draws: int, seeds: range, past: Past | None
    ) -> tuple[Work, DrawPlan]:
        resolved = resolve(sampling, self.objective, past, draws)
        points = _points(resolved.sampler, len(self.latents), draws, seeds)
        plan = plan_at_points(resolved, self.objective, points)
        latents = np.tile(self.latents, (len(seeds), 1, 1, 1))
        return make_work(plan, latents, None, self._branches, self.objective, seeds[0]), plan


@cache
def _points(sampler: TimestepSampler, renders: int, draws: int, seeds: range) -> Float64Array:
    return np.concatenate([place_points(sampler, renders, draws, seed) for seed in seeds])


def _runs(result: WorkResult, plan: DrawPlan, renders: int) -> Runs:
    assert result.reduction is not None
    gradient, variance = reduce_moments(result.reduction, plan, (plan.renders, *EVENT_SHAPE))
    return Runs(
        gradient.reshape(-1, renders, math.prod(EVENT_SHAPE)).astype(np.float64),
        variance.reshape(-1, renders),
    )


def broken_likelihood_ratio(work: Work) -> Work:
    """Each draw's p/q off by a factor that depends on t."""
    return replace(work, scales=work.scales * (2.0 * work.timesteps / len(oracle_schedule())) ** 2)


def broken_sign(work: Work) -> Work:
    """The first branch enters with the wrong sign."""
    flipped = work.branch_coefficients.copy()
    flipped[0] *= -1.0
    return replace(work, branch_coefficients=flipped)


def misplaced_control(work: Work) -> Work:
    """The control variate on eps_hat in place of eps: its mean is not zero."""
    branches = work.branch_coefficients.copy()
    branches[0] += work.control_coefficients
    return replace(
        work,
        branch_coefficients=branches,
        control_coefficients=np.zeros_like(work.control_coefficients),
    )


def largest_z(gradients: Float64Array, expected: Float64Array) -> float:
    """Largest |z| of the mean over runs, along the expected gradient and along one fixed random
    direction, for each render and for their sum.

    Args:
        gradients: [M, R, D], independent over M.
        expected: [R, D].
    """
    errors = gradients - expected
    random = np.random.default_rng(0).normal(size=expected.shape)
    along = [np.einsum("mrd,rd->mr", errors, direction) for direction in (expected, random)]
    samples = np.concatenate([*along, *(a.sum(axis=1, keepdims=True) for a in along)], axis=1)
    deviations = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return float(np.max(np.abs(samples.mean(axis=0) / deviations)))
