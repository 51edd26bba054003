"""ProfileTeacher: bin by bin through the queue, then what the bins say together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carv_server.history import DrawHistories, history_key
from carv_server.request import ProfileRequest
from carv_server.rows import make_work
from carv_server.sampling.plan import DrawPlan
from carv_server.sampling.profile import (
    BinDraws,
    BinMoments,
    Profile,
    TimestepBin,
    bin_moments,
    plan_bin,
    profile_from_moments,
    timestep_bins,
)
from carv_server.sampling.proposals import adaptive_table
from carv_server.sampling.schedule import Schedule
from carv_server.scheduler import Scheduler
from carv_server.scheduling.job import JobResult
from carv_server.scheduling.terms import Terms

__all__ = ["MeasuredProfile", "ProfileStep", "profile_teacher"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

# Enough that a device finds the next microbatch waiting, little enough that a profile takes a
# small part in the queue whatever it asks for.
_EVALUATIONS_IN_FLIGHT = 128


@dataclass(frozen=True)
class MeasuredProfile:
    """The profile of a teacher at a request's latents.

    Attributes:
        adaptive: q(t) of the history before this profile, float64 [N], or None without a past.
        past_draws: discounted draws behind ``adaptive``.
    """

    profile: Profile
    adaptive: Float64Array | None
    past_draws: float
    draws: int
    evaluations: int


@dataclass(frozen=True)
class ProfileStep:
    """The share of the draws done, and after the last of them the result."""

    share: float
    result: MeasuredProfile | None = None


@dataclass(frozen=True)
class _Measured:
    """One bin, evaluated. ``residuals``: float64 [n, 3], as ``JobResult``."""

    plan: DrawPlan
    draws: BinDraws
    residuals: Float64Array
    evaluations: int


async def profile_teacher(
    request: ProfileRequest,
    schedule: Schedule,
    scheduler: Scheduler,
    histories: DrawHistories,
    terms: Terms,
) -> AsyncGenerator[ProfileStep]:
    """Yields a step after each bin. Closing the generator drops what still waits.

    Raises RequestError as ``Scheduler.submit``; a queue that fills up once the profile is under
    way is waited for.
    """
    objective = request.objective
    use_reference = [branch.use_reference for branch in request.branches]
    key = history_key(objective, use_reference, request.history, terms.tenant)
    past = histories.look(key)
    adaptive = (
        None if past is None else adaptive_table(objective, past.root_second_moment, past.draws)
    )
    bins = timestep_bins(schedule.log_snr, objective.prior, request.bins)

    cost = len(request.latents) * request.draws_per_bin * len(request.branches)
    renders, events = len(request.latents), request.latents[0].size
    gradient = np.zeros((renders, events))
    moments: dict[int, BinMoments] = {}
    records: list[tuple[Int64Array, Float64Array]] = []
    evaluations = 0
    tasks: dict[asyncio.Task[_Measured], int] = {}
    try:
        while len(moments) < len(bins):
            started = len(moments) + len(tasks)
            while started < len(bins) and len(tasks) * cost < _EVALUATIONS_IN_FLIGHT:
                measuring = _measure(
                    request, bins[started], started, scheduler, terms, lambda: bool(moments)
                )
                tasks[asyncio.create_task(measuring)] = started
                started += 1
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = tasks.pop(task)
                measured = task.result()
                moments[index] = bin_moments(measured.draws, objective)
                gradient += bins[index].mass * measured.draws.mean
                records.append((measured.plan.timesteps.reshape(-1), measured.residuals))
                evaluations += measured.evaluations
            if len(moments) < len(bins):
                yield ProfileStep(len(moments) / len(bins))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if request.warm:
        histories.record(
            key,
            None,
            np.concatenate([timesteps for timesteps, _ in records]),
            np.concatenate([residuals for _, residuals in records]),
        )
    ordered = [moments[index] for index in range(len(bins))]
    yield ProfileStep(
        1.0,
        MeasuredProfile(
            profile=profile_from_moments(bins, ordered, gradient, objective),
            adaptive=adaptive,
            past_draws=0.0 if past is None or adaptive is None else past.draws,
            draws=sum(len(timesteps) for timesteps, _ in records),
            evaluations=evaluations,
        ),
    )


async def _measure(
    request: ProfileRequest,
    where: TimestepBin,
    index: int,
    scheduler: Scheduler,
    terms: Terms,
    under_way: Callable[[], bool],
) -> _Measured:
    """Evaluate one bin. ``under_way``: whether a bin of this profile has been measured."""
    plan = plan_bin(
        where,
        index,
        request.objective.prior,
        len(request.latents),
        request.draws_per_bin,
        request.seed,
    )
    work = make_work(
        plan,
        request.latents,
        request.reference_latents,
        request.branches,
        request.objective,
        request.seed,
    )
    result = await scheduler.submit_patiently(work, terms, under_way)
    assert result.residuals is not None
    residuals = result.residuals
    return _Measured(plan, _bin_draws(plan, result, residuals), residuals, work.evaluations)


def _bin_draws(plan: DrawPlan, result: JobResult, residuals: Float64Array) -> BinDraws:
    """Pairs from a job whose draws are in the order of the plan."""
    assert result.reduction is not None
    renders, pairs = plan.renders, plan.draws // 2
    pair_means = residuals.reshape(renders, pairs, 2, 3).mean(axis=2)
    # Moments of the pairs' sums, which are 2 e_j.
    sums = [result.reduction.moments[render, 2] for render in range(renders)]
    return BinDraws(
        timesteps=plan.timesteps[:, ::2],
        squared_norms=pair_means[..., 0],
        noise_products=pair_means[..., 1],
        noise_norms=pair_means[..., 2],
        mean=np.stack([each.mean.numpy() for each in sums]) / 2.0,
        deviation=np.array([each.deviation for each in sums]) / 4.0,
    )
