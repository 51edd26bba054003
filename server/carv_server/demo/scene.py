"""From a field and a view to an image, in the teacher's convention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carv_server.demo.cameras import View, camera_rays
from carv_server.demo.convention import Convention
from carv_server.demo.field import VoxelField
from carv_server.demo.renderer import render_rays

__all__ = ["Render", "render_view"]


@dataclass(frozen=True)
class Render:
    """One rendered view."""

    image: Tensor
    """``[H, W, 3]`` in [0, 1]."""
    opacity: Tensor
    """``[H * W]`` in [0, 1]; zero where a ray misses the field."""


def render_view(
    field: VoxelField,
    view: View,
    convention: Convention,
    *,
    samples: int,
    size: int | None = None,
    generator: torch.Generator | None = None,
) -> Render:
    """Renders ``view`` at ``size`` pixels (the teacher's where absent); differentiable.

    With a generator, the query points are jittered along each ray; without, they are the middles
    of their cells and the result is deterministic.
    """
    size = size or convention.image_size
    dtype = field.base.dtype
    origin, direction = (part.to(dtype) for part in camera_rays(view, size, convention.fov))
    jitter = None
    if generator is not None:
        jitter = torch.rand(len(direction), 1, generator=generator, dtype=dtype)
    grid = field.grid()
    image, opacity = render_rays(
        lambda points: field.query(grid, points),
        origin,
        direction,
        radius=field.config.extent,
        samples=samples,
        background=torch.tensor(convention.background, dtype=dtype),
        jitter=jitter,
    )
    return Render(image.view(size, size, 3), opacity)
