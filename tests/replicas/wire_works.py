"""Works of every kind, real ones where a teacher must evaluate them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from carv_server.replicas.protocol import Branch, Conditioning, Work
from tests.support.oracle import EVENT_SHAPE

__all__ = ["conditioning", "every_kind", "make"]


def conditioning(label: int) -> Conditioning:
    return Conditioning(f"class-{label}", {"class_label": torch.tensor(label)})


def make(
    seed: int,
    *,
    renders: int = 3,
    draws: int = 4,
    branches: Sequence[Branch] = (Branch([conditioning(0)]),),
    streams: bool = False,
    reference: bool = False,
    noisy: bool = False,
    keep: bool = False,
    latents: npt.NDArray[np.float32] | None = None,
) -> Work:
    """R renders of K draws, groups of one draw, cells of two."""
    rng = np.random.default_rng(seed)
    rows = renders * draws

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    place = np.arange(rows) % draws
    return Work(
        seed=seed,
        latents=normal(renders, *EVENT_SHAPE) if latents is None else latents,
        reference_latents=normal(renders, *EVENT_SHAPE) if reference else None,
        branches=branches,
        renders=np.arange(rows) // draws,
        timesteps=rng.integers(20, 980, rows),
        noise_indices=place,
        groups=place // 2 if streams else place,
        cells=place // 4 if streams else place // 2,
        signs=np.sign(normal(rows)),
        scales=normal(rows),
        branch_coefficients=normal(len(branches), rows),
        noise_coefficients=normal(rows),
        control_coefficients=normal(rows),
        streams=place % 2 if streams else None,
        latents_are_noisy=noisy,
        keep_predictions=keep,
    )


def every_kind() -> list[Work]:
    """Each field of a work at each of its kinds of values; the last two share latents."""
    one, other = conditioning(0), conditioning(1)
    shared = np.random.default_rng(99).standard_normal((2, *EVENT_SHAPE)).astype(np.float32)
    return [
        make(1),
        make(2**64 - 1, branches=[Branch([one]), Branch([other])]),
        make(3, branches=[Branch([other, one, other]), Branch([one], True)], reference=True),
        make(4, renders=1, draws=1),
        make(5, streams=True, draws=8),
        make(6, renders=2, noisy=True, keep=True, latents=shared),
        make(7, renders=2, latents=shared),
    ]
