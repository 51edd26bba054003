"""Variance between views, by way of choosing them, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carv_client.cameras import ViewRange, view_points
from carv_server.demo.between import ViewBank, between_variance, measure_bank
from carv_server.demo.convention import Convention
from carv_server.demo.field import VoxelField
from carv_server.demo.scene import render_view
from tests.demo.fakes import FakeClient, jacobian, small_settings, small_studio

AZIMUTHS, ELEVATIONS = 12, 4
SETTINGS = small_settings(1.0)


def bank_of(values: np.ndarray) -> ViewBank:
    """Of one-dimensional gradients at the grid's views."""
    return ViewBank(AZIMUTHS, ELEVATIONS, np.outer(values, values))


def grid() -> tuple[np.ndarray, np.ndarray]:
    azimuth = 2 * np.pi * (np.arange(AZIMUTHS) + 0.5) / AZIMUTHS
    height = (np.arange(ELEVATIONS) + 0.5) / ELEVATIONS - 0.5
    return np.tile(azimuth, ELEVATIONS), np.repeat(height, AZIMUTHS)


@pytest.fixture
def field() -> VoxelField:
    field = VoxelField(SETTINGS.field)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for level in field.levels:
            level.copy_(torch.randn(level.shape, generator=generator))
    return field


def test_known_gradients_have_known_variances() -> None:
    """Odd ones cancel in pairs exactly, whole cells as well as points; even ones make a pair one
    view twice. 4000 sets: a relative error of 2 to 3 %."""
    azimuth, height = grid()
    for values in (np.cos(azimuth), height, 3.0 + np.sin(azimuth) + height):
        for renders in (2, 4):
            for sampler in ("antithetic", "stratified_antithetic"):
                variance, error = bank_of(values).between_variance(sampler, renders)  # type: ignore[arg-type]
                assert abs(variance) < 1e-12
                assert error < 1e-12
    even = np.cos(2 * azimuth)
    for renders in (2, 4):
        exact, error = bank_of(even).between_variance("independent", renders)
        assert (exact, error) == (pytest.approx(0.5 / renders), 0.0)
        pairs, error = bank_of(even).between_variance("antithetic", renders)
        assert pairs == pytest.approx(0.5 / (renders / 2), rel=0.1)
        assert error < 0.05 * pairs
    # One view in each elevation of the grid: nothing is left of what depends on it alone.
    assert abs(bank_of(height).between_variance("stratified", ELEVATIONS)[0]) < 1e-12


def test_independent_views_by_simulation_and_by_arithmetic() -> None:
    """B/R, with any gradients: the exact value against 4000 sets drawn on the same grid."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(AZIMUTHS * ELEVATIONS, 6)) + 1.0
    bank = ViewBank(AZIMUTHS, ELEVATIONS, gradients @ gradients.T)
    expected = gradients.var(axis=0).sum() / 3
    assert bank.between_variance("independent", 3)[0] == pytest.approx(expected)
    chosen = bank.index(np.stack([view_points("independent", 3, rng) for _ in range(4000)]))
    means = gradients[chosen].mean(axis=1)
    assert means.var(axis=0).sum() == pytest.approx(expected, rel=0.1)


def test_the_bank_holds_the_exact_parameter_gradients(
    convention: Convention, field: VoxelField
) -> None:
    """Without noise G is that of J^T x; ``progress`` comes to one."""
    studio = small_studio(convention, FakeClient(scale=0.0))
    booked: list[float] = []
    bank = measure_bank(
        studio, field, SETTINGS, azimuths=4, elevations=2, draws=4, progress=booked.append
    )
    assert sum(booked) == pytest.approx(1.0)
    region = ViewRange(convention.elevation, (convention.distance, convention.distance))
    gradients = []
    for row in range(2):
        for column in range(4):
            view = region.view((column + 0.5) / 4, (row + 0.5) / 2, 0.5)
            image = render_view(field, view, studio.convention, samples=SETTINGS.samples).image
            latents = studio.encoder(image[None])
            matrix = jacobian(latents, list(field.parameters()))
            gradients.append((matrix.T @ latents.detach().flatten()).numpy())
    exact = np.stack(gradients).astype(np.float64)
    np.testing.assert_allclose(bank.gram, exact @ exact.T, rtol=1e-4, atol=1e-6)
    value = between_variance(studio, field, "independent", 2, bank=bank)
    assert value == pytest.approx(exact.var(axis=0).sum() / 2, rel=1e-4)


def test_the_noise_of_the_draws_is_left_out(convention: Convention, field: VoxelField) -> None:
    """B from a noisy bank, less B without noise, as a z-score over 24 banks: |t| < 4.5 with 23
    degrees of freedom has P = 1.6e-4."""
    exact = measure_bank(
        small_studio(convention, FakeClient(scale=0.0)), field, SETTINGS, azimuths=4, elevations=1
    ).between_variance("independent", 1)[0]
    values = []
    for seed in range(24):
        studio = small_studio(convention, FakeClient(scale=2.0))
        bank = measure_bank(
            studio, field, SETTINGS, azimuths=4, elevations=1, draws=4, seed=1000 * seed
        )
        values.append(bank.between_variance("independent", 1)[0] - exact)
    errors = np.array(values)
    assert abs(errors.mean()) < 4.5 * errors.std(ddof=1) / np.sqrt(len(errors))
