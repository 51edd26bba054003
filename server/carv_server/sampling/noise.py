"""The contract's noise on a torch device: Philox4x32-10 and Box-Muller in float32.

The law and the counter layout are those of ``carv.noise``, which is the numpy reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from carv.noise import DOMAIN_NOISE

__all__ = ["draw_noise", "philox4x32"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Philox4x32-10 over int64 tensors that hold 32-bit words; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def draw_noise(
    seeds: torch.Tensor,
    renders: torch.Tensor,
    indices: torch.Tensor,
    event_shape: Sequence[int],
) -> torch.Tensor:
    """Standard normal noise for n draws.

    Args:
        seeds: int64 [n, 2], low and high word of each draw's seed.
        renders, indices: int64 [n], each in [0, 2^32).

    Returns:
        float32 [n, *event_shape] on the device of ``seeds``.
    """
    size = math.prod(event_shape)
    block = torch.arange(-(-size // 4), device=seeds.device).unsqueeze(0)
    counter = (
        block,
        indices.unsqueeze(1),
        renders.unsqueeze(1),
        torch.full((1, 1), DOMAIN_NOISE, device=seeds.device),
    )
    w0, w1, w2, w3 = philox4x32(counter, (seeds[:, :1], seeds[:, 1:]))
    first, second = _box_muller(w0, w1), _box_muller(w2, w3)
    lanes = torch.stack([*first, *second], dim=-1).flatten(1)[:, :size]
    return lanes.reshape(-1, *event_shape)


def _multiply(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of the 64-bit product, by 16-bit halves of the multiplier: a plain
    product would overflow int64, which torch does not define."""
    low_part = word * (multiplier & 0xFFFF)
    high_part = word * (multiplier >> 16) + (low_part >> 16)
    return high_part >> 16, ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF)


def _box_muller(radial: torch.Tensor, angular: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two normals from two words, each cut to the 24 bits that float32 holds exactly."""
    scale = 2.0**-24
    radius = torch.sqrt(-2.0 * torch.log(((radial >> 8).float() + 1.0) * scale))
    angle = (2.0 * math.pi) * ((angular >> 8).float() * scale)
    return radius * torch.cos(angle), radius * torch.sin(angle)
