"""The contract's noise on a torch device: Philox4x32-10 and Box-Muller in float32.

The law and the counter layout are those of ``carv.noise``, which is the numpy reference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from carv.noise import DOMAIN_NOISE
from carv_server.sampling.fused_noise import fused_lanes
from carv_server.sampling.philox import WordBlock, noise_words, philox4x32

__all__ = ["draw_noise"]

_log = logging.getLogger(__name__)

_fuses = True  # whether torch can compile kernels, as far as is known
# Counters at a time on a CPU: six arrays of their words, 8 bytes each, near the second-level cache,
# and few enough calls of numpy's, which cost as much as a thousand counters each.
_COUNTERS = 1 << 14
_SCALE = 2.0**-24  # words are cut to the 24 bits that float32 holds exactly


def draw_noise(
    seeds: torch.Tensor,
    renders: torch.Tensor,
    indices: torch.Tensor,
    event_shape: Sequence[int],
) -> torch.Tensor:
    """Standard normal noise for n draws.

    On a CPU it takes about 7 ns a value, half of it Philox.

    Args:
        seeds: int64 [n, 2], low and high word of each draw's seed.
        renders, indices: int64 [n], each in [0, 2^32).

    Returns:
        float32 [n, *event_shape] on the device of ``seeds``.
    """
    size = math.prod(event_shape)
    blocks = -(-size // 4)
    match seeds.device.type:
        case "cpu":
            lanes = _on_cpu(seeds, renders, indices, blocks)
        case "cuda":
            lanes = _on_cuda(seeds, renders, indices, blocks)
        case _:
            lanes = _on_device(seeds, renders, indices, blocks)
    return lanes.flatten(1)[:, :size].reshape(-1, *event_shape)


def _on_cuda(
    seeds: torch.Tensor, renders: torch.Tensor, indices: torch.Tensor, blocks: int
) -> torch.Tensor:
    global _fuses
    if _fuses:
        try:
            return fused_lanes(seeds, renders, indices, blocks, DOMAIN_NOISE)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, AttributeError) as error:
            _fuses = False
            _log.warning("noise by many small kernels, since none can be compiled: %s", error)
    return _on_device(seeds, renders, indices, blocks)


def _on_device(
    seeds: torch.Tensor, renders: torch.Tensor, indices: torch.Tensor, blocks: int
) -> torch.Tensor:
    counter = (
        torch.arange(blocks, device=seeds.device).unsqueeze(0),
        indices.unsqueeze(1),
        renders.unsqueeze(1),
        torch.full((1, 1), DOMAIN_NOISE, device=seeds.device),
    )
    words = philox4x32(counter, (seeds[:, :1], seeds[:, 1:]))
    lanes: list[torch.Tensor] = []
    for radial, angular in (words[:2], words[2:]):
        radius = torch.sqrt(-2.0 * torch.log(((radial >> 8).float() + 1.0) * _SCALE))
        angle = (2.0 * math.pi) * ((angular >> 8).float() * _SCALE)
        lanes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(lanes, dim=-1)


def _on_cpu(
    seeds: torch.Tensor, renders: torch.Tensor, indices: torch.Tensor, blocks: int
) -> torch.Tensor:
    lanes = np.empty((len(seeds), blocks, 4), dtype=np.float32)
    keys, i, r = (values.numpy().astype(np.uint64) for values in (seeds, indices, renders))
    for block in noise_words(i, r, keys, blocks, DOMAIN_NOISE, _COUNTERS):
        _box_muller(block, lanes[block.rows, block.columns])
    return torch.from_numpy(lanes)


def _box_muller(block: WordBlock, out: npt.NDArray[np.float32]) -> None:
    """Four normals [n, blocks, 4] from the words of n x blocks counters, which are overwritten:
    words 0 and 2 give radii, 1 and 3 angles. The steps of ``carv.noise``, in place."""
    radius, angle = _top_bits(block.even), _top_bits(block.odd)
    radius += np.float32(1.0)
    radius *= np.float32(_SCALE)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(_SCALE)
    angle *= np.float32(2.0 * math.pi)
    pairs = np.moveaxis(out.reshape(*out.shape[:2], 2, 2), 2, 0)
    np.multiply(radius, np.cos(angle), out=pairs[..., 0])
    np.multiply(radius, np.sin(angle, out=angle), out=pairs[..., 1])


def _top_bits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """The 24 bits that are kept, as float32."""
    words >>= np.uint64(8)
    return words.view(np.int64).astype(np.float32)  # CPUs convert signed integers faster
