"""The variance study against the closed form of a teacher whose noise is known.

The fake teacher's gradient at latents x is x plus noise of covariance (s^2 / K) I, and the latents
are a known function of the field's parameters with Jacobian J at each camera, so that

    W(K) = s^2 / K * mean over cameras of ||J||_F^2,    B = tr Cov over cameras of J^T x.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from carv_server.demo.cameras import View
from carv_server.demo.convention import Convention
from carv_server.demo.field import VoxelField
from carv_server.demo.optimise import Studio
from carv_server.demo.scene import render_view
from carv_server.demo.settings import BASELINE, Settings
from carv_server.demo.variance import VarianceStudy, measure_variance
from tests.demo.fakes import (
    SECONDS_PER_DRAW,
    FakeClient,
    jacobian,
    small_settings,
    small_studio,
)

METHODS = [replace(BASELINE, name="uniform").with_draws(draws) for draws in (1, 4)]
SETTINGS = small_settings(1.0)


@pytest.fixture
def field() -> VoxelField:
    field = VoxelField(SETTINGS.field)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for level in field.levels:
            level.copy_(torch.randn(level.shape, generator=generator))
    return field


def cameras(count: int) -> list[View]:
    rng = np.random.default_rng(4)
    return [View(float(rng.uniform(0, 360)), float(rng.uniform(0, 60)), 3.0) for _ in range(count)]


def measure(
    convention: Convention, field: VoxelField, views: list[View], scale: float
) -> tuple[VarianceStudy, Studio, list[float]]:
    studio = small_studio(convention, FakeClient(scale=scale))
    booked: list[float] = []
    study = measure_variance(studio, field, views, METHODS, SETTINGS, booked.append)
    return study, studio, booked


def closed_form(
    studio: Studio, field: VoxelField, views: list[View], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """||J||_F^2 and tr (J^T J)^2 of each camera, and B."""
    norms, squares, means = [], [], []
    for view in views:
        image = render_view(field, view, studio.convention, samples=settings.samples).image
        latents = studio.encoder(image[None])
        matrix = jacobian(latents, list(field.parameters()))
        gram = matrix @ matrix.T
        norms.append(gram.trace())
        squares.append((gram @ gram).trace())
        means.append(matrix.T @ latents.detach().flatten())
    stacked = torch.stack(means)
    return torch.stack(norms), torch.stack(squares), stacked.var(dim=0).sum()


def test_without_noise_all_variance_is_between_cameras(
    convention: Convention, field: VoxelField
) -> None:
    views = cameras(5)
    study, studio, booked = measure(convention, field, views, scale=0.0)
    _, _, between = closed_form(studio, field, views, SETTINGS)
    assert study.between == pytest.approx(float(between), rel=1e-4)
    assert [point.within for point in study.points] == [0.0, 0.0]
    assert sum(booked) == pytest.approx(1.0)


def test_variance_of_the_draws_is_the_closed_form(
    convention: Convention, field: VoxelField
) -> None:
    """Each W(K) within 4 of its own standard deviations of the truth (one false alarm in 16 000,
    and the seeds are fixed), and so is B of the noise that is left in the cameras' means."""
    views, scale = cameras(60), 3.0
    study, studio, _ = measure(convention, field, views, scale)
    norms, squares, between = closed_form(studio, field, views, SETTINGS)
    for point, method in zip(study.points, METHODS, strict=True):
        variance = scale**2 / method.draws
        expected = variance * float(norms.mean())
        # ||J^T n||^2 of Gaussian n has the variance 2 tr (J^T J)^2.
        deviation = variance * float((2 * squares).sum().sqrt()) / len(views)
        assert abs(point.within - expected) < 4 * deviation
        assert point.draws == method.draws and point.method == "uniform"
        spread = variance * float(norms.std()) / len(views) ** 0.5
        sampled = (deviation**2 + spread**2) ** 0.5  # a standard error over cameras sees both
        assert point.standard_error == pytest.approx(sampled, rel=0.5)
        assert study.total(point) == study.between + point.within
    # Mean over 2 * 2 estimates: noise s^2 (1 + 1/4) / 8 in every mean, taken off again.
    left = scale**2 * (1 + 1 / 4) / 8 * float(norms.mean())
    assert abs(study.between - float(between)) < 0.3 * (left + float(between))


def test_compute_counts_upstream_and_denoise(convention: Convention, field: VoxelField) -> None:
    study, _, _ = measure(convention, field, cameras(2), scale=1.0)
    assert study.upstream > 0 and study.cameras == 2
    for point, method in zip(study.points, METHODS, strict=True):
        assert point.compute == pytest.approx(study.upstream + SECONDS_PER_DRAW * method.draws)
