"""Works of every kind that a microbatch may mix, for any teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from carv_server.replicas.protocol import Branch, Conditioning, Work
from carv_server.teachers.protocol import Teacher

__all__ = ["make", "mixed"]


def make(
    teacher: Teacher,
    conditionings: Sequence[Conditioning],
    seed: int,
    *,
    renders: int = 1,
    draws: int = 1,
    branches: int = 1,
    paired: bool = False,
    streams: bool = False,
    reference: bool = False,
    control: bool = False,
    noisy: bool = False,
    keep: bool = False,
) -> Work:
    """``draws`` of each render: with ``paired`` neighbours share eps with opposite signs, and two
    pairs make a cell. One conditioning a render in the first branch."""
    rng = np.random.default_rng(seed)
    shape = teacher.description.event_shape
    n = renders * draws
    index = np.tile(np.arange(draws), renders)
    group = index // 2 if paired else index

    def normal(*size: int) -> npt.NDArray[np.float32]:
        return rng.normal(size=size).astype(np.float32)

    count = len(conditionings)
    of_branch = [
        [conditionings[(seed + j + r) % count] for r in range(renders if j == 0 else 1)]
        for j in range(branches)
    ]
    return Work(
        seed=seed,
        latents=normal(renders, *shape),
        reference_latents=normal(renders, *shape) if reference else None,
        branches=[
            Branch(each, use_reference=reference and j == branches - 1)
            for j, each in enumerate(of_branch)
        ],
        renders=np.repeat(np.arange(renders), draws),
        timesteps=rng.integers(10, len(teacher.description.schedule) - 10, n),
        noise_indices=group.copy(),
        groups=group,
        cells=group // 2 if paired else group.copy(),
        signs=np.where(paired & (index % 2 == 1), -1.0, 1.0).astype(np.float32),
        scales=np.abs(normal(n)) + np.float32(1.0),
        branch_coefficients=normal(branches, n),
        noise_coefficients=np.full(n, -1.0, dtype=np.float32),
        control_coefficients=normal(n) if control else np.zeros(n, dtype=np.float32),
        streams=(group // 2) % 2 if streams else None,
        latents_are_noisy=noisy,
        keep_predictions=keep,
    )


def mixed(teacher: Teacher, conditionings: Sequence[Conditioning]) -> list[Work]:
    """One row, two branches in antithetic pairs, three with a reference, kept predictions at x and
    at z_t, a control variate, the same seed twice."""
    return [
        make(teacher, conditionings, 1),
        make(teacher, conditionings, 2**64 - 3, renders=2, draws=8, branches=2, paired=True),
        make(teacher, conditionings, 3, keep=True, draws=2),
        make(teacher, conditionings, 4, renders=3, draws=2, branches=3, reference=True),
        make(teacher, conditionings, 2**63, noisy=True, keep=True, renders=2),
        make(teacher, conditionings, 6, draws=3, branches=2, control=True),
        make(teacher, conditionings, 1, draws=2),
    ]
