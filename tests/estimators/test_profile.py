"""A profile's moments and variances against their closed forms.

Between conditional components the oracle teacher is linear in eps: h = A(t) + C(t) eps, with A from
the mixture and C = sum_j a_j sigma^2 / (alpha^2 s_j^2 + sigma^2) + d. So, in D dimensions, with the
prior of a bin,

    E ||f||^2 = E_t w^2 (||A||^2 + C^2 D),   E f = E_t w A,
    E ||even part||^2 = E_t w^2 ||A||^2,     E <h, eps> / E ||eps||^2 = E_t C.

Means over 200 profiles of fixed seeds are compared by z-tests at 4.5 standard errors: 35 numbers, a
false alarm in 4000 choices of seeds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from carv_server import profile as profile_module
from carv_server.history import DrawHistories, HistoryConfig
from carv_server.profile import MeasuredProfile, profile_teacher
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.request import ProfileRequest
from carv_server.sampling.objective import NamedWeighting
from carv_server.sampling.plan import DrawPlan
from carv_server.sampling.profile import plan_bin
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.scheduling.terms import Terms
from tests.estimators.harness import Oracle
from tests.support.oracle import EVENT_SHAPE, oracle_mixture, oracle_schedule

BINS, DRAWS, SEEDS = 8, 4, range(200)
LIMIT = 4.5
DIMENSIONS = math.prod(EVENT_SHAPE)
BIN_NUMBERS = ("second_moment", "squared_mean", "even_second_moment", "noise_slope")
NUMBERS = ("prior_variance", "weight_variance", "squared_gradient")


@cache
def oracle() -> Oracle:
    """Near the data, with more noise than score distillation has and a weighting that changes its
    sign within a bin: noise, means and their cancellation all count."""
    found = Oracle(NamedWeighting.SDS)
    means = oracle_mixture().means
    found.latents = np.stack([0.8 * means[1] + 0.2 * means[2], means[1]]).astype(np.float32)
    ramp = np.linspace(1.0, 0.2, len(oracle_schedule()))
    found.objective = replace(
        found.objective,
        weighting=0.3 + np.sin(np.linspace(0.0, 60.0, len(ramp))),
        branch_coefficients=np.stack([ramp, 1.0 - ramp]),
        noise_coefficient=-0.5 - ramp,
    )
    return found


def run(seeds: Sequence[int]) -> list[MeasuredProfile]:
    async def main() -> list[MeasuredProfile]:
        found: list[MeasuredProfile] = []
        with ThreadPoolExecutor(1) as executor:
            replica = InProcessReplica(oracle()._teacher, executor)
            scheduler = Scheduler([replica], SchedulerConfig(), time.monotonic)
            scheduler.start()
            histories = DrawHistories(oracle_schedule(), HistoryConfig())
            for seed in seeds:
                request = ProfileRequest(
                    latents=oracle().latents,
                    reference_latents=None,
                    branches=oracle()._branches,
                    objective=oracle().objective,
                    bins=BINS,
                    draws_per_bin=DRAWS,
                    seed=seed,
                    history="",
                    warm=False,
                )
                steps = profile_teacher(request, oracle_schedule(), scheduler, histories, Terms())
                last = [step async for step in steps][-1]
                assert last.result is not None
                found.append(last.result)
            await scheduler.stop()
        return found

    return asyncio.run(main())


@cache
def profiles() -> list[MeasuredProfile]:
    return run(SEEDS)


def table(found: Sequence[MeasuredProfile]) -> dict[str, np.ndarray]:
    """Each number over runs: [M, bins] or [M, 1]."""
    numbers = {
        name: np.array([[getattr(b, name) for b in each.profile.moments] for each in found])
        for name in BIN_NUMBERS
    }
    return numbers | {
        name: np.array([[getattr(each.profile, name)] for each in found]) for name in NUMBERS
    }


@cache
def closed_form() -> dict[str, np.ndarray]:
    mixture, schedule, objective = oracle_mixture(), oracle_schedule(), oracle().objective
    x = oracle().latents
    mean = np.zeros((len(x), len(schedule), DIMENSIONS))  # A
    slope = objective.noise_coefficient.copy()  # C
    for label, coefficient in zip((1, 2), objective.branch_coefficients, strict=True):
        expected = mixture.expected_noise(x, label, schedule).reshape(mean.shape)
        mean += coefficient[None, :, None] * expected
        variance = (schedule.alpha * mixture.scales[label]) ** 2 + schedule.sigma**2
        slope += coefficient * schedule.sigma**2 / variance
    w, p = objective.weighting, objective.prior
    even = w**2 * np.mean(np.sum(mean**2, axis=2), axis=0)
    second = even + w**2 * slope**2 * DIMENSIONS
    found: dict[str, list[float]] = {name: [] for name in BIN_NUMBERS}
    for where in profiles()[0].profile.bins:
        inside = where.table(p) / where.mass
        means = np.einsum("t,rtd->rd", inside * w, mean)
        found["second_moment"].append(float(inside @ second))
        found["squared_mean"].append(float(np.mean(np.sum(means**2, axis=1))))
        found["even_second_moment"].append(float(inside @ even))
        found["noise_slope"].append(float(inside @ slope))
    squared_gradient = float(np.mean(np.sum(oracle().closed_form() ** 2, axis=1)))
    weight = p * np.abs(w) / (p @ np.abs(w))
    used = p > 0
    return {name: np.array(values) for name, values in found.items()} | {
        "prior_variance": np.array([p @ second - squared_gradient]),
        "weight_variance": np.array(
            [np.sum(p[used] ** 2 / weight[used] * second[used]) - squared_gradient]
        ),
        "squared_gradient": np.array([squared_gradient]),
        "second": second,
    }


def largest_z(values: np.ndarray, expected: np.ndarray) -> float:
    deviation = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return float(np.max(np.abs(values.mean(axis=0) - expected) / deviation))


@pytest.mark.parametrize("name", [*BIN_NUMBERS, *NUMBERS])
def test_is_unbiased_for_the_closed_form(name: str) -> None:
    assert largest_z(table(profiles())[name], closed_form()[name]) < LIMIT


def test_notices_a_square_of_a_mean_that_keeps_its_noise() -> None:
    """||m||^2 in place of ||m||^2 - s^2/n, in every bin and in ||g||^2."""
    kept = np.array(
        [[b.squared_mean + b.mean_variance for b in each.profile.moments] for each in profiles()]
    )
    assert largest_z(kept, closed_form()["squared_mean"]) > 2 * LIMIT


def _signs(plan: DrawPlan) -> DrawPlan:
    return replace(plan, signs=np.ones_like(plan.signs))


def _flat(plan: DrawPlan) -> DrawPlan:
    """All draws of a bin at its first timestep."""
    first = np.full_like(plan.timesteps, plan.timesteps.min())
    return replace(plan, timesteps=first)


@pytest.mark.parametrize(
    ("mutation", "noticed"),
    [
        (_signs, ("even_second_moment",)),
        (_flat, BIN_NUMBERS),
    ],
    ids=["pairs without opposite signs", "one timestep a bin"],
)
def test_notices_broken_draws(
    mutation: Callable[[DrawPlan], DrawPlan],
    noticed: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        profile_module, "plan_bin", lambda *args, **kwargs: mutation(plan_bin(*args, **kwargs))
    )
    broken = table(run(SEEDS[:40]))
    for name in noticed:
        assert largest_z(broken[name], closed_form()[name]) > LIMIT, name


def test_the_standard_error_is_that_of_the_second_moment() -> None:
    """The mean squared standard error is the variance over runs, bin by bin. The ratio of a mean of
    200 sample variances to the variance of 200 numbers spreads by about 0.12."""
    errors = np.array(
        [[b.second_moment_error for b in each.profile.moments] for each in profiles()]
    )
    spread = table(profiles())["second_moment"].var(axis=0, ddof=1)
    ratio = np.mean(errors**2, axis=0) / spread
    assert np.all((ratio > 0.5) & (ratio < 1.5))


def test_the_oracle_has_the_variance_that_it_reports_and_the_least_of_all() -> None:
    """Judged on its own draws it is a little low, by 2 % here (0.9 % standard error). No proposal
    is below (sum p sqrt(E ||f||^2))^2 - ||g||^2, and this one is within 2 % of it."""
    form, p = closed_form(), oracle().objective.prior
    squared_gradient = form["squared_gradient"].item()
    used = p > 0
    true = [
        np.sum(p[used] ** 2 / each.profile.oracle[used] * form["second"][used]) - squared_gradient
        for each in profiles()
    ]
    least = np.sum(p * np.sqrt(form["second"])) ** 2 - squared_gradient
    reported = np.mean([each.profile.oracle_variance for each in profiles()])
    assert np.min(true) >= least
    assert np.mean(true) < 1.02 * least < min(form["prior_variance"], form["weight_variance"])
    assert 0.94 < reported / np.mean(true) < 1.01
