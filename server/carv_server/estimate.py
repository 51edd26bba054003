"""Plan, submit, reduce: the estimator

    g_r = (1/K) sum_k (p/q)(t_rk) f(x_r, t_rk, eps_rk)        (arXiv 2605.21489, Eq. 13)

over one request's renders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch

from carv_server.replicas.protocol import Branch, Work
from carv_server.request import DrawSpec, EstimateRequest, PredictRequest
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import DrawPlan, effective_sample_size, plan_draws
from carv_server.sampling.reduce import Moments, estimate_from_moments
from carv_server.scheduler import Scheduler

__all__ = [
    "Estimate",
    "Prediction",
    "VarianceEstimator",
    "estimate_gradient",
    "make_work",
    "predict_noise",
    "reduce_moments",
]

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
    """

    gradient: Float32Array
    noise_variance: Float64Array | None
    variance_estimator: VarianceEstimator
    effective_sample_size: Float64Array
    plan: DrawPlan
    evaluations: int
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class Prediction:
    """eps_hat of every draw, float32 [R, K, *event_shape]."""

    noise: Float32Array
    evaluations: int
    queue_seconds: float
    compute_seconds: float


async def estimate_gradient(
    request: EstimateRequest, scheduler: Scheduler, deadline: float | None
) -> Estimate:
    """Raises RequestError as ``Scheduler.submit``."""
    plan = request.draws
    if isinstance(plan, DrawSpec):
        plan = plan_draws(
            plan.sampling, request.objective, len(request.latents), plan.draws, request.seed
        )
    work = make_work(
        plan,
        request.latents,
        request.reference_latents,
        request.branches,
        request.objective,
        request.seed,
    )
    result = await scheduler.submit(work, deadline)
    gradient, variance = reduce_moments(result.moments, plan, request.latents.shape)
    available = not np.isnan(variance).any()
    return Estimate(
        gradient=gradient,
        noise_variance=variance if available else None,
        variance_estimator=_variance_estimator(plan, available),
        effective_sample_size=effective_sample_size(plan.importance_weights),
        plan=plan,
        evaluations=work.evaluations,
        queue_seconds=result.queue_seconds,
        compute_seconds=result.compute_seconds,
    )


async def predict_noise(
    request: PredictRequest, scheduler: Scheduler, deadline: float | None
) -> Prediction:
    """Raises RequestError as ``Scheduler.submit``."""
    plan = request.plan
    work = make_work(
        plan, request.latents, None, [request.branch], None, request.seed, request.noisy
    )
    result = await scheduler.submit(work, deadline)
    assert result.predictions is not None
    flat = np.empty_like(result.predictions.numpy())
    flat[_grouped_order(plan)] = result.predictions.numpy()
    return Prediction(
        flat.reshape(plan.renders, plan.draws, *request.latents.shape[1:]),
        work.evaluations,
        result.queue_seconds,
        result.compute_seconds,
    )


def _grouped_order(plan: DrawPlan) -> npt.NDArray[np.int64]:
    """Flat draw indices, renders in order and the draws of a group next to each other."""
    renders = np.repeat(np.arange(plan.renders), plan.draws)
    return np.lexsort((plan.groups.reshape(-1), renders))


def make_work(
    plan: DrawPlan,
    latents: Float32Array,
    reference_latents: Float32Array | None,
    branches: Sequence[Branch],
    objective: ObjectiveTables | None,
    seed: int,
    noisy: bool = False,
) -> Work:
    """All draws of a request, groups contiguous. Without an objective: predictions are kept."""
    order = _grouped_order(plan)
    t = plan.timesteps.reshape(-1)[order]
    draws = len(order)
    if objective is None:
        scales, branch_coefficients = np.ones(draws), np.ones((1, draws))
        noise_coefficients = np.zeros(draws)
    else:
        scales = plan.importance_weights.reshape(-1)[order] * objective.weighting[t]
        branch_coefficients = objective.branch_coefficients[:, t]
        noise_coefficients = objective.noise_coefficient[t]
    return Work(
        seed=seed,
        latents=torch.tensor(latents),
        reference_latents=None if reference_latents is None else torch.tensor(reference_latents),
        branches=branches,
        renders=torch.from_numpy(order // plan.draws),
        timesteps=torch.from_numpy(t),
        noise_indices=torch.from_numpy(plan.noise_indices.reshape(-1)[order]),
        groups=torch.from_numpy(plan.groups.reshape(-1)[order]),
        signs=_float32(plan.signs.reshape(-1)[order]),
        scales=_float32(scales),
        branch_coefficients=_float32(branch_coefficients),
        noise_coefficients=_float32(noise_coefficients),
        latents_are_noisy=noisy,
        keep_predictions=objective is None,
    )


def _float32(values: Float64Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def reduce_moments(
    totals: Mapping[tuple[int, int], Moments], plan: DrawPlan, shape: tuple[int, ...]
) -> tuple[Float32Array, Float64Array]:
    """Gradient float32 [R, *event_shape] and variance float64 [R], from moments by (render, group
    size)."""
    gradient = np.empty((plan.renders, math.prod(shape[1:])), dtype=np.float32)
    variance = np.empty(plan.renders)
    by_render: list[dict[int, Moments]] = [{} for _ in range(plan.renders)]
    for (render, size), moments in totals.items():
        by_render[render][size] = moments
    for render, by_size in enumerate(by_render):
        mean, variance[render] = estimate_from_moments(by_size, plan.draws)
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
