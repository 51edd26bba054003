"""The volume renderer against closed forms, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from carv_server.demo.renderer import ball_span, composite, render_rays

WHITE = torch.ones(3, dtype=torch.float64)


def fan(count: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from (0, 0, 3) towards the origin, fanned out in x by ``spread`` radians."""
    angle = torch.linspace(-spread, spread, count, dtype=torch.float64)
    direction = torch.stack([angle.sin(), torch.zeros_like(angle), -angle.cos()], dim=-1)
    return torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64), direction


def test_chord_of_a_ball_is_exact() -> None:
    origin, direction = fan(21, 0.5)
    start, length = ball_span(origin, direction, 0.9)
    closest = 3 * torch.linspace(-0.5, 0.5, 21, dtype=torch.float64).sin()
    expected = 2 * (0.81 - closest**2).clamp_min(0).sqrt()
    torch.testing.assert_close(length, expected, rtol=0, atol=1e-12)
    entry = origin + start[:, None] * direction
    inside = expected > 0
    torch.testing.assert_close(
        entry[inside].norm(dim=-1), torch.full((int(inside.sum()),), 0.9, dtype=torch.float64)
    )


@pytest.mark.parametrize("samples", [1, 7, 40])
@pytest.mark.parametrize("density", [0.3, 2.0, 25.0])
def test_constant_ball_absorbs_by_beer_lambert(samples: int, density: float) -> None:
    """In a ball of constant density, opacity = 1 - exp(-density * chord) for any sample count."""
    origin, direction = fan(15, 0.4)
    colour = torch.tensor([0.8, 0.1, 0.3], dtype=torch.float64)

    def query(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(points),), density, dtype=torch.float64), colour.expand(
            len(points), 3
        )

    image, opacity = render_rays(
        query, origin, direction, radius=0.9, samples=samples, background=WHITE
    )
    _, chord = ball_span(origin, direction, 0.9)
    expected = 1 - torch.exp(-density * chord)
    torch.testing.assert_close(opacity, expected, rtol=1e-12, atol=1e-12)
    mixed = expected[:, None] * colour + (1 - expected[:, None]) * WHITE
    torch.testing.assert_close(image, mixed, rtol=1e-12, atol=1e-12)


def test_two_slabs_composite_front_to_back() -> None:
    """Slab 1 hides slab 2 by exp(-optical depth of slab 1)."""
    density = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    colour = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]], dtype=torch.float64)
    seen, transmittance = composite(density, colour, torch.tensor([[0.5, 0.25]]).double())
    first, second = 1 - math.exp(-0.5), 1 - math.exp(-0.75)
    expected = torch.tensor([[first, math.exp(-0.5) * second, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(seen, expected)
    assert transmittance.item() == pytest.approx(math.exp(-1.25), rel=1e-12)


def test_smooth_density_converges_to_its_integral() -> None:
    """A Gaussian density: optical depth through the centre has a closed form (erf)."""
    origin = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64)
    direction = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64)

    def query(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 4 * torch.exp(-((points**2).sum(-1)) / 0.08), torch.zeros(
            len(points), 3, dtype=torch.float64
        )

    _, opacity = render_rays(query, origin, direction, radius=0.9, samples=200, background=WHITE)
    depth = 4 * math.sqrt(0.08 * math.pi) * math.erf(0.9 / math.sqrt(0.08))
    assert opacity.item() == pytest.approx(1 - math.exp(-depth), abs=1e-4)


def test_rays_that_miss_show_the_background_and_pass_no_gradient() -> None:
    origin, direction = fan(9, 0.9)
    level = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)

    def query(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return level.expand(len(points)), torch.zeros(len(points), 3, dtype=torch.float64)

    image, opacity = render_rays(query, origin, direction, radius=0.9, samples=8, background=WHITE)
    missed = ball_span(origin, direction, 0.9)[1] == 0
    assert missed.any() and not missed.all()
    torch.testing.assert_close(image[missed], WHITE.expand(int(missed.sum()), 3))
    (gradient,) = torch.autograd.grad(opacity[missed].sum(), level, allow_unused=True)
    assert gradient is None or gradient.item() == 0.0


def test_gradient_matches_finite_differences() -> None:
    """Central differences in float64 over density and colour of every sample."""
    generator = torch.Generator().manual_seed(3)
    density = torch.rand(4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    colour = torch.rand(4, 6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    step = torch.full((4, 1), 0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda d, c: composite(d, c, step), (density, colour), eps=1e-6, atol=1e-8
    )
