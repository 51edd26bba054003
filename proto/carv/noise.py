"""The noise law of the contract, in numpy: what any client needs to reproduce z_t.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) keyed by the 64-bit seed, and Box-Muller in float32. Counter words:

    (block, index, render, domain)

``domain`` 0 makes the noise of a draw: element e of the event, row-major, is lane e % 4 of
block e // 4. Domains 1 and 2 place timesteps (see the server's sampling plan).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DOMAIN_JITTER", "DOMAIN_NOISE", "DOMAIN_PERMUTATION", "draw_noise", "philox4x32"]

DOMAIN_NOISE = 0
DOMAIN_JITTER = 1
DOMAIN_PERMUTATION = 2

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def philox4x32(counters: npt.ArrayLike, seed: int) -> npt.NDArray[np.uint32]:
    """Philox4x32-10.

    Args:
        counters: integers in [0, 2^32), shape [..., 4].
        seed: the key, 0 <= seed < 2^64; its low word is key word 0.

    Returns:
        uint32, shape [..., 4].
    """
    c = np.asarray(counters).astype(np.uint64)
    c0, c1, c2, c3 = (c[..., lane] for lane in range(4))
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def draw_noise(
    seed: int, render: int, index: int, event_shape: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Standard normal noise of one (seed, render, noise index), float32 [*event_shape].

    The server's noise on any device agrees to float32 rounding of log, sqrt, sin and cos.
    """
    size = int(np.prod(tuple(event_shape), dtype=np.int64))
    blocks = -(-size // 4)
    counters: npt.NDArray[Any] = np.zeros((blocks, 4), dtype=np.uint64)
    counters[:, 0] = np.arange(blocks)
    counters[:, 1:] = (index, render, DOMAIN_NOISE)
    words = philox4x32(counters, seed)
    top = (words >> np.uint32(8)).astype(np.float32)  # 24 bits: exact in float32
    scale = np.float32(2.0**-24)
    radius = np.sqrt(np.float32(-2.0) * np.log((top[:, 0::2] + np.float32(1.0)) * scale))
    angle = np.float32(2.0 * np.pi) * (top[:, 1::2] * scale)
    # Lanes 0, 1 from words 0, 1; lanes 2, 3 from words 2, 3.
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(-1)[:size].reshape(tuple(event_shape))
