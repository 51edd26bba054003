"""Plan, submit, reduce: the estimator

    g_r = (1/K) sum_k (p/q)(t_rk) f(x_r, t_rk, eps_rk)        (arXiv 2605.21489, Eq. 13)

over one request's renders. The proposal q is fixed by past requests' draws alone; this request's
are recorded once it is answered.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from carv_server.history import DrawHistories, history_key
from carv_server.request import DrawSpec, EstimateRequest, PredictRequest
from carv_server.rows import make_work, planned_order
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import (
    DrawPlan,
    Resolved,
    effective_sample_size,
    plan_draws,
    resolve,
)
from carv_server.sampling.reduce import Moments, Reduction, estimate_from_moments
from carv_server.scheduler import Scheduler
from carv_server.scheduling.job import JobResult
from carv_server.scheduling.terms import Terms

__all__ = [
    "DrawRecord",
    "Estimate",
    "Prediction",
    "VarianceEstimator",
    "estimate_gradient",
    "predict_noise",
    "reduce_moments",
    "together",
]

T = TypeVar("T")

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


class VarianceEstimator(Enum):
    UNAVAILABLE = "unavailable"
    UNBIASED = "unbiased"
    CONSERVATIVE = "conservative"


@dataclass(frozen=True)
class Estimate:
    """A gradient with its diagnostics.

    Attributes:
        gradient: float32 [R, *event_shape].
        noise_variance: float64 [R], tr Cov of each render's gradient; None where unavailable.
        effective_sample_size: float64 [R].
        draws_spent: R K.
        draws: the draws made, in the order of K; put together when they are first asked for.
        sampling: how they were made; None for the client's own draws.
        half_estimates: float32 [2, R, *event_shape], independent, where asked for.
    """

    gradient: Float32Array
    noise_variance: Float64Array | None
    variance_estimator: VarianceEstimator
    effective_sample_size: Float64Array
    draws_spent: int
    sampling: Resolved | None
    half_estimates: Float32Array | None
    evaluations: int
    queue_seconds: float
    compute_seconds: float
    make_record: Callable[[], DrawRecord]

    @cached_property
    def draws(self) -> DrawRecord:
        return self.make_record()


@dataclass(frozen=True)
class DrawRecord:
    """The draws behind an estimate, all [R, K].

    Attributes:
        norms: float64, ||f||, the weighting included, importance weight and control variate not.
    """

    timesteps: npt.NDArray[np.int64]
    noise_indices: npt.NDArray[np.int64]
    signs: Float64Array
    importance_weights: Float64Array
    control_coefficients: Float64Array
    norms: Float64Array


@dataclass(frozen=True)
class Prediction:
    """eps_hat of every draw, float32 [R, K, *event_shape]."""

    noise: Float32Array
    evaluations: int
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class _Part:
    """One plan, evaluated; ``residuals`` float64 [R, K, 3]."""

    plan: DrawPlan
    gradient: Float32Array
    variance: Float64Array
    residuals: Float64Array
    evaluations: int
    result: JobResult


async def estimate_gradient(
    request: EstimateRequest,
    scheduler: Scheduler,
    histories: DrawHistories,
    terms: Terms,
) -> Estimate:
    """Raises RequestError as ``Scheduler.submit``."""
    spec, resolved, key = request.draws, None, None
    if isinstance(spec, DrawSpec):
        key = history_key(
            request.objective,
            [b.use_reference for b in request.branches],
            spec.history,
            terms.tenant,
        )
        past = histories.recall(key, request.seed)
        halves = 2 if spec.half_estimates else 1
        draws = spec.draws // halves
        resolved = resolve(spec.sampling, request.objective, past, draws)
        plans = [
            plan_draws(
                resolved, request.objective, len(request.latents), draws, request.seed, stream
            )
            for stream in range(halves)
        ]
    else:
        plans = [spec]
    parts = await together([_evaluate(request, plan, scheduler, terms) for plan in plans])
    if key is not None:
        for part in parts:
            histories.record(
                key,
                request.seed,
                part.plan.timesteps.reshape(-1),
                part.residuals.reshape(-1, 3),
            )
    return _merged(parts, resolved, request.objective)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them; the first failure cancels the others."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _evaluate(
    request: EstimateRequest, plan: DrawPlan, scheduler: Scheduler, terms: Terms
) -> _Part:
    work = make_work(
        plan,
        request.latents,
        request.reference_latents,
        request.branches,
        request.objective,
        request.seed,
    )
    result = await scheduler.submit(work, terms)
    assert result.reduction is not None and result.residuals is not None
    gradient, variance = reduce_moments(result.reduction, plan, request.latents.shape)
    residuals = result.residuals
    if plan.draws > 1:
        ordered, residuals = residuals, np.empty_like(residuals)
        residuals[planned_order(plan)] = ordered
    shape = (plan.renders, plan.draws, 3)
    return _Part(plan, gradient, variance, residuals.reshape(shape), work.evaluations, result)


def _merged(
    parts: Sequence[_Part], resolved: Resolved | None, objective: ObjectiveTables
) -> Estimate:
    """The mean of independent parts of equal K, and all their draws."""
    count = len(parts)
    plan, variance = parts[0].plan, parts[0].variance
    gradients = parts[0].gradient[np.newaxis]
    if count > 1:
        gradients = np.stack([part.gradient for part in parts])
        variance = np.sum([part.variance for part in parts], axis=0) / count**2
    # One draw has no spread.
    available = plan.draws > 1 and not np.isnan(variance).any()
    estimator = _variance_estimator(plan, available)
    if count == 2 and estimator is VarianceEstimator.UNAVAILABLE:
        # The halves have one law and share nothing, so their difference says it.
        difference = (gradients[0] - gradients[1]).reshape(len(variance), -1).astype(np.float64)
        variance = (difference**2).sum(axis=1) / 4
        estimator = VarianceEstimator.UNBIASED

    weights = _joined(parts, lambda part: part.plan.importance_weights)
    return Estimate(
        gradient=gradients.mean(axis=0) if count > 1 else gradients[0],
        noise_variance=None if estimator is VarianceEstimator.UNAVAILABLE else variance,
        variance_estimator=estimator,
        effective_sample_size=effective_sample_size(weights),
        draws_spent=weights.size,
        sampling=resolved,
        half_estimates=gradients if count > 1 else None,
        evaluations=sum(part.evaluations for part in parts),
        queue_seconds=min(part.result.queue_seconds for part in parts),
        compute_seconds=sum(part.result.compute_seconds for part in parts),
        make_record=lambda: _record(parts, objective),
    )


def _joined(
    parts: Sequence[_Part], values: Callable[[_Part], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """[R, K] over the parts' draws."""
    if len(parts) == 1:
        return values(parts[0])
    return np.concatenate([values(part) for part in parts], axis=1)


def _record(parts: Sequence[_Part], objective: ObjectiveTables) -> DrawRecord:
    timesteps = _joined(parts, lambda part: part.plan.timesteps)
    return DrawRecord(
        timesteps=timesteps,
        noise_indices=_joined(parts, lambda part: part.plan.noise_indices),
        signs=_joined(parts, lambda part: part.plan.signs),
        importance_weights=_joined(parts, lambda part: part.plan.importance_weights),
        control_coefficients=_joined(parts, lambda part: part.plan.control_coefficients),
        norms=np.abs(objective.weighting[timesteps])
        * np.sqrt(_joined(parts, lambda part: part.residuals[..., 0])),
    )


async def predict_noise(request: PredictRequest, scheduler: Scheduler, terms: Terms) -> Prediction:
    """Raises RequestError as ``Scheduler.submit``."""
    plan = request.plan
    work = make_work(
        plan, request.latents, None, [request.branch], None, request.seed, request.noisy
    )
    result = await scheduler.submit(work, terms)
    assert result.predictions is not None
    flat = result.predictions
    if plan.draws > 1:
        flat = np.empty_like(result.predictions)
        flat[planned_order(plan)] = result.predictions
    return Prediction(
        flat.reshape(plan.renders, plan.draws, *request.latents.shape[1:]),
        work.evaluations,
        result.queue_seconds,
        result.compute_seconds,
    )


def reduce_moments(
    reduction: Reduction, plan: DrawPlan, shape: tuple[int, ...]
) -> tuple[Float32Array, Float64Array]:
    """Gradient float32 [R, *event_shape] and variance float64 [R]."""
    if plan.draws == 1:
        # A render's gradient is its draw, in float32 as it is: nothing to add up.
        means = {render: m.mean.numpy() for (render, _), m in reduction.moments.items()}
        rows = [means[render] for render in range(plan.renders)]
        gradient = rows[0] if len(rows) == 1 else np.stack(rows)
        return gradient.astype(np.float32, copy=False).reshape(shape), np.full(len(rows), math.nan)
    gradient = np.empty((plan.renders, math.prod(shape[1:])), dtype=np.float32)
    variance = np.empty(plan.renders)
    by_render: list[dict[int, Moments]] = [{} for _ in range(plan.renders)]
    for (render, size), moments in reduction.moments.items():
        by_render[render][size] = moments
    for render, by_size in enumerate(by_render):
        spread = reduction.spreads.get(render)
        mean, variance[render] = estimate_from_moments(by_size, plan.draws, spread)
        gradient[render] = mean.numpy()
    return gradient.reshape(shape), variance


def _variance_estimator(plan: DrawPlan, available: bool) -> VarianceEstimator:
    if not available:
        return VarianceEstimator.UNAVAILABLE
    # Three draws as an antithetic pair and a single have no unbiased estimator.
    equal = plan.draws != 3 or len(np.unique(plan.groups[0])) in (1, 3)
    if plan.identically_distributed and equal:
        return VarianceEstimator.UNBIASED
    return VarianceEstimator.CONSERVATIVE
