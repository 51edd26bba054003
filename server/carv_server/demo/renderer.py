"""Differentiable volume rendering by emission and absorption (Max 1995).

Along a ray o + s d the colour is the integral of T(s) sigma(s) c(s), with the transmittance
T(s) = exp(-integral of sigma up to s), plus T(end) times the background. With N samples in cells of
length h and opacities a_i = 1 - exp(-sigma_i h):

    C = sum_i a_i c_i prod_{j<i} (1 - a_j) + background * prod_i (1 - a_i)

which is exact for density and colour constant in each cell.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ball_span", "composite", "render_rays"]

Query = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points ``[N, 3]`` to density ``[N]`` and colour ``[N, 3]``."""


def ball_span(origin: Tensor, direction: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Entry ``[N]`` and length ``[N]`` of rays inside the ball of ``radius`` at the origin.

    ``origin`` is ``[3]`` or ``[N, 3]``, ``direction`` unit vectors ``[N, 3]``. The length is zero
    where a ray misses the ball. The origin must lie outside of it.
    """
    along = (origin * direction).sum(-1)
    discriminant = along * along - (origin * origin).sum(-1) + radius * radius
    half = discriminant.clamp_min(0).sqrt()
    return -along - half, 2 * half


def composite(density: Tensor, colour: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Colour ``[N, 3]`` before any background, and transmittance ``[N]`` of rays.

    ``density`` is ``[N, S]`` front to back, ``colour`` ``[N, S, 3]``, ``step`` ``[N, 1]`` or
    ``[N, S]`` the length of the cells.
    """
    depth = torch.cumsum(density * step, dim=-1)
    remaining = torch.exp(-depth)
    before = torch.cat([torch.ones_like(remaining[:, :1]), remaining[:, :-1]], dim=-1)
    weight = before - remaining
    return torch.einsum("ns,nsc->nc", weight, colour), remaining[:, -1]


def render_rays(
    query: Query,
    origin: Tensor,
    direction: Tensor,
    *,
    radius: float,
    samples: int,
    background: Tensor,
    jitter: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Colour ``[N, 3]`` and opacity ``[N]`` of rays through the ball of ``radius``.

    Each ray's chord is cut into ``samples`` equal cells; ``jitter`` ``[N, 1]`` in [0, 1) places
    the query inside every cell of its ray (the middle where absent). Rays that miss the ball cost
    nothing and show ``background`` ``[3]``.
    """
    start, length = ball_span(origin, direction, radius)
    hit = (length > 0).nonzero().squeeze(-1)
    step = (length[hit] / samples)[:, None]
    offset = 0.5 if jitter is None else jitter[hit]
    cells = torch.arange(samples, device=direction.device, dtype=direction.dtype)
    distance = start[hit, None] + step * (cells + offset)
    source = origin if origin.dim() == 1 else origin[hit, None]
    points = source + distance[..., None] * direction[hit, None]
    density, colour = query(points.view(-1, 3))
    seen, transmittance = composite(density.view(-1, samples), colour.view(-1, samples, 3), step)
    image = background.expand(len(direction), 3).clone()
    image[hit] = seen + transmittance[:, None] * background
    opacity = torch.zeros_like(length)
    opacity[hit] = 1 - transmittance
    return image, opacity
