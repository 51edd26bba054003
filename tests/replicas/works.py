"""Works of every kind that a microbatch may mix, for any teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    shape = teacher.description.event_shape
    n = renders * draws
    index = torch.arange(draws).repeat(renders)
    group = index // 2 if paired else index

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

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
        renders=torch.arange(renders).repeat_interleave(draws),
        timesteps=torch.randint(
            10, len(teacher.description.schedule) - 10, (n,), generator=generator
        ),
        noise_indices=group.clone(),
        groups=group,
        cells=group // 2 if paired else group.clone(),
        signs=1.0 - 2.0 * (index % 2) if paired else torch.ones(n),
        scales=1.0 + normal(n).abs(),
        branch_coefficients=normal(branches, n),
        noise_coefficients=-torch.ones(n),
        control_coefficients=normal(n) if control else torch.zeros(n),
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
