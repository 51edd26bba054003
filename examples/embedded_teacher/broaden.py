"""Images beyond the data: what a field looks like in the middle of an optimisation.

Score distillation sends half-made renders through the encoder: blurred, see-through, of mixed and
wrong colours. An encoder that saw clean renders in eight hues alone maps several colours to
nearly the same latents, and a gradient through it then ends on the wrong one.
"""

from __future__ import annotations

import dataset as ds
import torch
import torch.nn.functional as F
from torch import Tensor


def broaden(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random recolourings, mixtures of two objects, transparency, haze and blur.

    Args:
        images: float (n, 3, 64, 64) in [0, 1], renders on the data's background.

    Returns:
        The same shape and range.
    """
    n = len(images)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    background = torch.tensor(ds.BACKGROUND).view(1, 3, 1, 1)
    coverage = ((images - background).abs().amax(1, keepdim=True) * 3).clamp(0, 1)
    shade = (images.mean(1, keepdim=True) * 1.6).clamp(0, 1)
    hue = torch.sigmoid(
        7 * (uniform(n, 3, 1, 1) - 0.5) + _smooth(n, 3, generator) * uniform(n, 1, 1, 1)
    )
    colour = hue * (1 - 0.6 * uniform(n, 1, 1, 1) * (1 - shade))
    own = uniform(n, 1, 1, 1) < 0.3
    first = torch.where(own, images, colour)
    partner = torch.randperm(n, generator=generator)
    mask = torch.sigmoid(4 * _smooth(n, 1, generator, 2, 5))
    second = torch.where(uniform(n, 1, 1, 1) < 0.5, first[partner], first)
    second_coverage = torch.where(uniform(n, 1, 1, 1) < 0.3, coverage[partner], coverage)
    mixed = mask * first + (1 - mask) * second
    opacity = torch.maximum(coverage, second_coverage * mask)
    holes = torch.sigmoid(3 * _smooth(n, 1, generator, 2, 6) + 2 * (uniform(n, 1, 1, 1) - 0.5))
    opacity = torch.where(uniform(n, 1, 1, 1) < 0.5, opacity * holes, opacity)
    opacity = 1 - (1 - opacity) * (1 - _haze(n, generator))
    content = colour * (1 - mask) + mixed * mask
    return _blur(background + opacity * (content - background), generator).clamp(0, 1)


def _smooth(
    n: int, channels: int, generator: torch.Generator, low: int = 2, high: int = 10
) -> Tensor:
    """Smooth random fields (n, channels, 64, 64) of a random coarseness."""
    size = int(torch.randint(low, high + 1, (1,), generator=generator))
    coarse = torch.randn(n, channels, size, size, generator=generator)
    return F.interpolate(coarse, size=64, mode="bicubic", align_corners=True)


def _haze(n: int, generator: torch.Generator) -> Tensor:
    """Opacity (n, 1, 64, 64) of a soft ball around the centre, on two images in five."""
    axis = torch.linspace(-1, 1, 64)
    radius = (axis[:, None].square() + axis.square()).sqrt()[None, None]
    reach, steepness, strength, chance = (
        torch.rand(n, 1, 1, 1, generator=generator) for _ in range(4)
    )
    ball = torch.sigmoid((0.5 * reach + 0.3 - radius) * (5 + 20 * steepness)) * strength
    cloud = torch.sigmoid(2 * _smooth(n, 1, generator))
    return torch.where(chance < 0.4, ball * cloud, torch.zeros(()))


def _blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """One Gaussian blur of up to 2 pixels for the batch, on three images in five."""
    sigma = float(torch.rand(1, generator=generator) * 2)
    if sigma < 0.4:
        return images
    offsets = torch.arange(-4, 5).float()
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    rows = F.conv2d(F.pad(images, (4, 4, 0, 0), "replicate"), kernel, groups=3)
    both = F.conv2d(F.pad(rows, (0, 0, 4, 4), "replicate"), kernel.mT, groups=3)
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.6, both, images)
