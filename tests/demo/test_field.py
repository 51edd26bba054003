"""The voxel pyramid: what it means, and its gradient through a whole rendered view."""

from __future__ import annotations

import torch

from carv_server.demo.cameras import View
from carv_server.demo.convention import Convention
from carv_server.demo.field import FieldConfig, VoxelField
from carv_server.demo.scene import render_view

SMALL = FieldConfig(resolutions=(3, 6), max_density=10.0)


def test_levels_add_up_at_their_corners() -> None:
    """A coarse corner moves the field there by its full value, and by its trilinear weight else."""
    field = VoxelField(FieldConfig(resolutions=(3, 5)))
    with torch.no_grad():
        field.levels[0][0, 0, 1, 1, 1] = 2.0
        field.levels[1][0, 0, 2, 2, 2] = 0.5
    change = (field.grid() - field.base)[0, 0].detach()
    assert change[2, 2, 2].item() == 2.5  # the middle of both grids
    assert change[2, 2, 3].item() == 1.0  # half way to the next coarse corner
    assert change[0, 0, 0].item() == 0.0


def test_axes_are_world_axes() -> None:
    """A dense corner at +x, and none elsewhere, is found at +x by a query."""
    field = VoxelField(FieldConfig(resolutions=(2,), blob_logit=-60.0))
    with torch.no_grad():
        field.levels[0][0, 0, :, :, 1] = 12.0
    points = torch.tensor([[0.9, 0, 0], [-0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]])
    density, _ = field.query(field.grid(), points)
    assert density[0] > 39 and density[1] < 0.5
    torch.testing.assert_close(density[2], density[3])


def test_rendered_gradient_matches_finite_differences(convention: Convention) -> None:
    """d(image · probe)/d(parameters) along random directions, central differences in float64."""
    field = VoxelField(SMALL).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for level in field.levels:
            level.copy_(torch.randn(level.shape, generator=generator))
    probe = torch.randn(12, 12, 3, generator=generator, dtype=torch.float64)
    view = View(azimuth=35.0, elevation=20.0, distance=3.0)

    def value() -> torch.Tensor:
        return (render_view(field, view, convention, samples=16, size=12).image * probe).sum()

    parameters = list(field.parameters())
    gradient = torch.autograd.grad(value(), parameters)
    for _ in range(3):
        along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(gradient, along, strict=True))
        ends: list[torch.Tensor] = []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                for p, d in zip(parameters, along, strict=True):
                    p.add_(d, alpha=sign)
                ends.append(value())
                for p, d in zip(parameters, along, strict=True):
                    p.sub_(d, alpha=sign)
        torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-7)
