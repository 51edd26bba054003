"""Orbit cameras in the teacher's convention.

World frame: right-handed, +y up, the object at the origin. A camera of azimuth 0 sits on the +z
axis; azimuth grows towards +x. Camera frame (OpenGL): x right, y up, looking along -z. Angles are
in degrees, lengths in world units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from carv_client.cameras import View, ViewRange, independent_views

__all__ = ["View", "camera_rays", "random_views", "ring"]


def camera_rays(view: View, size: int, fov: float) -> tuple[Tensor, Tensor]:
    """Origin ``[3]`` and unit directions ``[size * size, 3]`` through the pixel centres.

    Rows run from the top of the image; ``fov`` is the full vertical field of view.
    """
    matrix = torch.from_numpy(view.to_matrix()).float()
    half = math.tan(math.radians(fov) / 2)
    grid = ((torch.arange(size) + 0.5) / size * 2 - 1) * half
    y, x = torch.meshgrid(-grid, grid, indexing="ij")
    local = torch.stack([x, y, -torch.ones_like(x)], dim=-1).view(-1, 3)
    local = torch.nn.functional.normalize(local, dim=-1)
    return matrix[:3, 3], local @ matrix[:3, :3].T


def random_views(
    rng: np.random.Generator, elevation: tuple[float, float], distance: tuple[float, float]
) -> Iterator[View]:
    """Endless views with azimuth, elevation and distance uniform in their ranges."""
    region = ViewRange(elevation, distance)
    while True:
        yield from independent_views(region, 1, rng)


def ring(count: int, elevation: float, distance: float, offset: float = 0.0) -> list[View]:
    """``count`` views at equal steps of azimuth, the first at ``offset`` degrees."""
    return [View(offset + 360.0 * i / count, elevation, distance) for i in range(count)]
