"""Variance of the parameter gradient against compute, at one state of a field.

A gradient of one random view with K draws has the variance V(K) = B + W(K): B between cameras, W
the mean over cameras of the variance over draws. With two independent estimates g, g' at each
camera, taken through the renderer and the encoder to the field's parameters (the Jacobian J),

    W(K) = mean over cameras of || J^T (g - g') ||^2 / 2

is unbiased, and B follows from the variance over cameras of the means of all estimates, less what
is left of W in them. The cost of one gradient is upstream + denoise seconds, both measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from carv_server.demo.cameras import View
from carv_server.demo.field import VoxelField
from carv_server.demo.optimise import Studio
from carv_server.demo.scene import render_view
from carv_server.demo.settings import Method, Settings

__all__ = ["VariancePoint", "VarianceStudy", "measure_variance"]


@dataclass(frozen=True)
class VariancePoint:
    """One method at one K."""

    method: str
    draws: int
    within: float
    """W(K): mean over cameras of tr Cov over draws, in parameter space."""
    compute: float
    """Seconds of one gradient: upstream and denoise."""
    standard_error: float
    """Of ``within``, over cameras."""


@dataclass(frozen=True)
class VarianceStudy:
    """All points, and what they share."""

    points: list[VariancePoint]
    between: float
    """B: tr Cov over cameras of the exact gradient; clipped at zero."""
    upstream: float
    """Seconds to render, encode and differentiate one view."""
    cameras: int

    def total(self, point: VariancePoint) -> float:
        """Variance of a gradient of one random view."""
        return self.between + point.within


def measure_variance(
    studio: Studio,
    field: VoxelField,
    views: Sequence[View],
    methods: Sequence[Method],
    settings: Settings,
    progress: Callable[[float], None],
) -> VarianceStudy:
    """Measures every method (with its own K) at ``field``, for the timesteps of mid-run.

    Costs two requests and one backward pass per view and method. ``progress`` is called with the
    fraction of the work done since its last call.
    """
    within: list[list[float]] = [[] for _ in methods]
    denoise = [0.0 for _ in methods]
    upstream = 0.0
    averages: list[Tensor] = []
    squares_of_noise: list[float] = []
    parameters = list(field.parameters())
    count = 2 * len(methods)
    for index, view in enumerate(views):
        start = time.perf_counter()
        render = render_view(field, view, studio.convention, samples=settings.samples)
        latents = studio.encoder(render.image[None])
        forward = time.perf_counter() - start
        backward: list[float] = []

        def pull_back(gradient: Tensor, latents: Tensor = latents) -> Tensor:
            """J^T ``gradient``."""
            parts = torch.autograd.grad(latents, parameters, gradient, retain_graph=True)
            return torch.cat([part.flatten() for part in parts])

        mean = torch.zeros_like(latents)
        noise = 0.0
        for slot, method in enumerate(methods):
            pair: list[Tensor] = []
            for repeat in range(2):
                estimate = studio.client.estimate_gradient(
                    latents.detach().numpy(),
                    studio.conditioning(view),
                    **method.options(settings, 0.5, 1_000_003 * (index + 1) + 2 * slot + repeat),
                )
                denoise[slot] += estimate.compute_seconds / 2
                pair.append(torch.from_numpy(estimate.gradient))
            start = time.perf_counter()
            variance = float(pull_back(pair[0] - pair[1]).square().sum()) / 2
            backward.append(time.perf_counter() - start)
            within[slot].append(variance)
            mean += (pair[0] + pair[1]) / count
            noise += 2 * variance
            progress(1 / (len(views) * len(methods)))
        averages.append(pull_back(mean))  # J^T is linear: the mean of all, in one pass
        squares_of_noise.append(noise / count**2)
        upstream += forward + sum(backward) / len(backward)
    means = torch.stack(averages)
    spread = float((means - means.mean(0)).square().sum()) / max(1, len(views) - 1)
    between = max(0.0, spread - sum(squares_of_noise) / len(views))
    upstream /= len(views)
    points: list[VariancePoint] = []
    for slot, method in enumerate(methods):
        values = torch.tensor(within[slot])
        points.append(
            VariancePoint(
                method=method.name,
                draws=method.draws,
                within=float(values.mean()),
                compute=upstream + denoise[slot] / len(views),
                standard_error=float(values.std()) / len(views) ** 0.5,
            )
        )
    return VarianceStudy(points, between, upstream, len(views))
