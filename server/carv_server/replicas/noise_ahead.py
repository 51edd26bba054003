"""Noise made before it is asked for, while the device is busy and the processor is not.

eps is a function of (seed, render, noise index). Where the server picks the seed, it may know
the next one early; and a caller's next request is mostly of the size of its last.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from carv_server.replicas.protocol import Work
from carv_server.sampling.noise import draw_noise
from carv_server.sampling.plan import NOISE_INDICES_OF_A_STREAM
from carv_server.sampling.seeds import Seeds

__all__ = ["NoiseAhead"]

# Of all that is kept; and of one request, which waits for little else where it is larger.
_MOST_BYTES = 16 << 20
_LARGEST_BYTES = 1 << 20

_Indices = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Made:
    """eps of distinct (render, noise index), float32 [n, *event_shape]."""

    indices: _Indices
    noise: torch.Tensor


class NoiseAhead:
    """On the CPU, of one teacher. One thread takes, another makes.

    Args:
        seeds: what requests without a seed are given.
    """

    def __init__(self, seeds: Seeds, event_shape: Sequence[int]) -> None:
        self._seeds = seeds
        self._event_shape = tuple(event_shape)
        self._event_bytes = 4 * math.prod(event_shape)
        self._kept: OrderedDict[int, _Made] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, works: Sequence[Work]) -> torch.Tensor | None:
        """eps of the distinct (seed, render, noise index) of all draws, in order; the caller's to
        overwrite. None where not all of it has been made."""
        with self._lock:
            found = [self._kept.get(work.seed) for work in works]
            made = [each for each in found if each is not None]
            if len(made) < len(works) or len({work.seed for work in works}) < len(works):
                return None
            for each, work in zip(made, works, strict=True):
                if each.indices != _indices(work):
                    return None
            for work in works:
                self._drop(work.seed)
        return made[0].noise if len(made) == 1 else torch.cat([each.noise for each in made])

    def make(self, works: Sequence[Work]) -> None:
        """Noise for requests like these, under the seeds that are taken next."""
        if len({work.seed for work in works}) < len(works):
            return  # parts of one request
        alike = [indices for work in works if (indices := self._expected(work))]
        for seed, indices in zip(self._seeds.ahead(len(alike)), alike, strict=True):
            with self._lock:
                if seed in self._kept:
                    continue
            noise = draw_noise(
                torch.tensor([[seed & 0xFFFFFFFF, seed >> 32]]).expand(len(indices), 2),
                torch.tensor([render for render, _ in indices]),
                torch.tensor([index for _, index in indices]),
                self._event_shape,
            )
            with self._lock:
                self._kept[seed] = _Made(indices, noise)
                self._bytes += noise.nbytes
                while self._bytes > _MOST_BYTES:
                    self._drop(next(iter(self._kept)))

    def _expected(self, work: Work) -> _Indices:
        """Of a request like this one's; empty where none is expected."""
        if work.latents_are_noisy or not self._seeds.came_from_here(work.seed):
            return ()
        if len(work.renders) * self._event_bytes > 2 * _LARGEST_BYTES:  # antithetic pairs share
            return ()
        indices = _indices(work)
        render, index = indices[0]
        is_start = render == 0 and index % NOISE_INDICES_OF_A_STREAM == 0
        return indices if is_start and len(indices) * self._event_bytes <= _LARGEST_BYTES else ()

    def _drop(self, seed: int) -> None:
        self._bytes -= self._kept.pop(seed).noise.nbytes


def _indices(work: Work) -> _Indices:
    """Distinct (render, noise index), in the order of their first draws."""
    return tuple(
        dict.fromkeys(zip(work.renders.tolist(), work.noise_indices.tolist(), strict=True))
    )
