"""An explicit radiance field: density and colour on a pyramid of voxel grids.

The raw field is the sum of trilinearly interpolated grids of growing resolution over the cube
[-extent, extent]^3. A coarse cell moves a whole region with one number, so a gradient method
with per-parameter steps (Adam) forms the rough shape first and the detail after it; a single
fine grid needs many more iterations from the same noisy gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FieldConfig", "VoxelField"]


@dataclass(frozen=True)
class FieldConfig:
    """Shape of the field. Lengths are in world units, densities in 1 / world unit."""

    extent: float = 0.9
    """Half edge of the cube that the grids cover; the field is empty outside the ball of this
    radius."""
    resolutions: tuple[int, ...] = (4, 8, 16, 32)
    """Cells along an edge, coarse to fine; the last is the resolution of the field."""
    max_density: float = 40.0
    """Density of a fully occupied point: a fine cell at the default is 1 - exp(-2.3) opaque."""
    blob_radius: float = 0.45
    """The field starts as a soft grey ball of this radius."""
    blob_sharpness: float = 8.0
    """Slope of the first occupancy logit along the radius, per world unit."""
    blob_logit: float = -2.0
    """Occupancy logit at the surface of the first ball: below zero it starts translucent."""


class VoxelField(nn.Module):
    """Density and colour at points of the world; parameters are the pyramid's grids."""

    base: Tensor

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 4, n, n, n)) for n in config.resolutions
        )
        axis = torch.linspace(-config.extent, config.extent, config.resolutions[-1])
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        radius = torch.sqrt(x * x + y * y + z * z)
        logit = config.blob_logit + config.blob_sharpness * (config.blob_radius - radius)
        base = torch.zeros(1, 4, *radius.shape)
        base[0, 0] = logit.clamp(-6.0, 4.0)
        self.register_buffer("base", base)

    def grid(self) -> Tensor:
        """Raw field ``[1, 4, D, H, W]`` (occupancy logit, then RGB logits) on the finest grid.

        Axes are ``(z, y, x)`` as ``grid_sample`` wants them; corners sit on the cube's corners.
        """
        size = self.base.shape[2:]
        total = self.base
        for level in self.levels:
            if level.shape[2:] == size:
                total = total + level
            else:
                total = total + functional.interpolate(
                    level, size=list(size), mode="trilinear", align_corners=True
                )
        return total

    def query(self, grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density ``[N]`` (per world unit) and colour ``[N, 3]`` in [0, 1] at points ``[N, 3]``.

        ``grid`` is the result of :meth:`grid`, built once for each render. Raw values are
        interpolated before the activation, which keeps surfaces sharper than a cell.
        """
        where = (points / self.config.extent).view(1, -1, 1, 1, 3)
        raw = functional.grid_sample(
            grid, where, mode="bilinear", padding_mode="border", align_corners=True
        )
        raw = raw.view(4, -1)
        density = self.config.max_density * torch.sigmoid(raw[0])
        return density, torch.sigmoid(raw[1:]).T

    def occupancy(self, grid: Tensor) -> Tensor:
        """Occupancy ``[D, H, W]`` in [0, 1] of the finest grid."""
        return torch.sigmoid(grid[0, 0])

    @property
    def cell(self) -> float:
        """Edge of a finest cell in world units."""
        return 2 * self.config.extent / (self.config.resolutions[-1] - 1)

    def parameter_count(self) -> int:
        return sum(math.prod(level.shape) for level in self.levels)
