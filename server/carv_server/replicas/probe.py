"""Work of no request: what a teacher is measured, compared and warmed up with. Fixed, so that
two runs of it differ by what runs it alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from carv_server.replicas.protocol import Branch, Conditioning, Work
from carv_server.teachers.protocol import (
    Classes,
    Prompts,
    RawTensors,
    Source,
    Teacher,
    Unconditional,
)

__all__ = ["probe_conditionings", "probe_work"]

_SEED = 20260521
_GUIDANCE_SCALE = 7.5
_PUNCTUATION = ",."


def probe_conditionings(teacher: Teacher) -> list[Conditioning]:
    """A conditional and an unconditional one, as far as the teacher has them; at least one."""
    spec = teacher.description.conditioning
    sources: list[Source] = []
    if spec.accepts_prompts:
        known = sorted(word for word in spec.vocabulary if word not in _PUNCTUATION)
        sources.append(Prompts((known[0] if known else "a photograph",)))
    elif spec.classes:
        sources.append(Classes((0,)))
    if spec.has_unconditional:
        sources.append(Unconditional())
    if not sources:
        zeros = {t.name: torch.zeros(t.shape, dtype=t.dtype) for t in spec.tensors}
        sources.append(RawTensors(zeros))
    return [
        Conditioning(f"probe-{i}", teacher.encode(source)[0]) for i, source in enumerate(sources)
    ]


def probe_work(
    teacher: Teacher, conditionings: Sequence[Conditioning], draws: int, seed: int = _SEED
) -> Work:
    """Draws of one render over all noise levels: classifier-free guidance where there are two
    conditionings, else the one's residual; w = 1."""
    description = teacher.description
    x = torch.randn(1, *description.event_shape, generator=torch.Generator().manual_seed(seed))
    steps = len(description.schedule)
    scale = _GUIDANCE_SCALE
    coefficients = [scale, 1.0 - scale] if len(conditionings) == 2 else [1.0]
    index = np.arange(draws)
    ones = np.ones(draws, dtype=np.float32)
    return Work(
        seed=seed,
        latents=x.numpy(),
        reference_latents=None,
        branches=[Branch([conditioning]) for conditioning in conditionings],
        renders=np.zeros(draws, dtype=np.int64),
        timesteps=(2 * index + 1) * steps // (2 * draws),
        noise_indices=index,
        groups=index,
        cells=index,
        signs=ones,
        scales=ones,
        branch_coefficients=np.array(coefficients, dtype=np.float32)[:, np.newaxis] * ones,
        noise_coefficients=-ones,
        control_coefficients=0.0 * ones,
    )
