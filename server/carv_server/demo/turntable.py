"""Turntables: the field from all sides, as an animated GIF."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from carv_server.demo.cameras import View
from carv_server.demo.convention import Convention
from carv_server.demo.field import VoxelField
from carv_server.demo.scene import render_view

__all__ = ["side_by_side", "turntable_frames", "turntable_views", "write_gif"]

Frames = list[npt.NDArray[np.uint8]]

_CAPTION_PIXELS = 22


def turntable_views(convention: Convention, count: int) -> list[View]:
    """``count`` views once around the object, rising and sinking twice on the way."""
    low, high = 8.0, 52.0
    middle, swing = (low + high) / 2, (high - low) / 2
    return [
        View(
            azimuth=360.0 * i / count,
            elevation=middle - swing * math.cos(2 * math.tau * i / count),
            distance=convention.distance,
        )
        for i in range(count)
    ]


@torch.no_grad()
def turntable_frames(
    field: VoxelField, convention: Convention, *, count: int, size: int, samples: int
) -> Frames:
    """``count`` frames ``[size, size, 3]``, rendered at this size and not scaled up."""
    frames: Frames = []
    for view in turntable_views(convention, count):
        image = render_view(field, view, convention, samples=samples, size=size).image
        frames.append((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    return frames


def side_by_side(columns: Sequence[Frames], captions: Sequence[str]) -> Frames:
    """Frames of several turntables next to each other, each under its caption."""
    joined: Frames = []
    for parts in zip(*columns, strict=True):
        row = np.concatenate(parts, axis=1)
        canvas = Image.new("RGB", (row.shape[1], row.shape[0] + _CAPTION_PIXELS), "white")
        canvas.paste(Image.fromarray(row), (0, _CAPTION_PIXELS))
        draw = ImageDraw.Draw(canvas)
        left = 0
        for part, caption in zip(parts, captions, strict=True):
            draw.text((left + part.shape[1] / 2, 5), caption, fill="black", anchor="ma")
            left += part.shape[1]
        joined.append(np.asarray(canvas, dtype=np.uint8))
    return joined


def write_gif(frames: Frames, path: Path, *, milliseconds: int = 80) -> None:
    """An endless GIF, each frame shown for ``milliseconds``."""
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
