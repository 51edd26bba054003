"""Noise made before it is asked for, while the device is busy and the processor is not.

eps is a function of (seed, render, noise index). Where the server picks the seed, it may know
the next one early; and a caller's next request is mostly of the size of its last.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from carv_server.replicas.protocol import Work
from carv_server.sampling.noise import draw_noise
from carv_server.sampling.seeds import Seeds

__all__ = ["NoiseAhead"]

_log = logging.getLogger(__name__)

# Of all that is kept; and of one request, were its draws to share none: a larger one waits for
# the device for the most part.
_MOST_BYTES = 16 << 20
_LARGEST_BYTES = 2 << 20

_Draws = tuple[bytes, bytes]
"""Renders and noise indices of a request, draw by draw."""


@dataclass(frozen=True)
class _Made:
    """eps of the distinct (render, noise index) among the draws, float32 [e, *event_shape]."""

    draws: _Draws
    noise: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.noise.nbytes + sum(map(len, self.draws))


class NoiseAhead:
    """On the CPU, of one teacher. Safe to use from several threads.

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
        if len({work.seed for work in works}) < len(works):
            return None
        made: list[_Made] = []
        with self._lock:
            for work in works:
                kept = self._kept.get(work.seed)
                if kept is None or kept.draws != _draws(work):
                    return None
                made.append(kept)
            for work in works:
                self._drop(work.seed)
        return made[0].noise if len(made) == 1 else torch.cat([each.noise for each in made])

    def make(self, works: Sequence[Work]) -> None:
        """Noise for requests like these, under the seeds that are taken next. Raises nothing: what
        is not made ahead is made when it is asked for."""
        try:
            alike = self._expected(works)
            for seed, work in zip(self._seeds.ahead(len(alike)), alike, strict=True):
                self._make(seed, work)
        except Exception:  # noqa: BLE001 - whatever it was, nobody waits for this
            _log.exception("noise could not be made ahead")

    def _make(self, seed: int, work: Work) -> None:
        draws = _draws(work)
        with self._lock:
            if seed in self._kept and self._kept[seed].draws == draws:
                return
        indices = _distinct(work)
        noise = draw_noise(
            torch.tensor([[seed & 0xFFFFFFFF, seed >> 32]]).expand(len(indices), 2),
            torch.tensor([render for render, _ in indices]),
            torch.tensor([index for _, index in indices]),
            self._event_shape,
        )
        made = _Made(draws, noise)
        with self._lock:
            if seed in self._kept:  # for others, or by another thread meanwhile
                self._drop(seed)
            self._kept[seed] = made
            self._bytes += made.nbytes
            while self._bytes > _MOST_BYTES:
                self._drop(next(iter(self._kept)))

    def _expected(self, works: Sequence[Work]) -> Sequence[Work]:
        """Those that requests like them are expected after: whole ones or the first parts of
        longer ones, as far as their noise may be kept."""
        if len({work.seed for work in works}) < len(works):
            return []  # parts of one request
        found: list[Work] = []
        left = _MOST_BYTES // 2
        for work in works:
            size = len(work.renders) * (self._event_bytes + 16)
            starts = work.renders.item(0) == 0 and work.noise_indices.item(0) == 0
            if (
                starts
                and size <= min(left, _LARGEST_BYTES)
                and not work.latents_are_noisy
                and self._seeds.came_from_here(work.seed)
            ):
                found.append(work)
                left -= size
        return found

    def _drop(self, seed: int) -> None:
        self._bytes -= self._kept.pop(seed).nbytes


def _draws(work: Work) -> _Draws:
    return work.renders.tobytes(), work.noise_indices.tobytes()


def _distinct(work: Work) -> list[tuple[int, int]]:
    """Distinct (render, noise index), in the order of their first draws."""
    pairs = zip(work.renders.tolist(), work.noise_indices.tolist(), strict=True)
    return list(dict.fromkeys(pairs))
