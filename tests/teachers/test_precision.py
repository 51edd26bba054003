"""Half precision on the CPU: how far eps_hat is from float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from carv_server.teachers.protocol import Classes, Prompts
from tests.teachers.loading import load

TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Relative, by norm: about five rounding steps of the format, 2^-10 and 2^-7."""


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v", "ddpm-classes"])
def test_half_precision(folders: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    exact, half = load(folders[name]), load(folders[name], dtype=dtype)
    source = Classes((1, 2)) if name == "ddpm-classes" else Prompts(("a red cube", ""))
    z = torch.randn(8, *exact.description.event_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 20, 300, 500, 700, 900, 980, 999])
    noises = []
    for teacher in (exact, half):
        rows = teacher.encode(source)
        conditioning = {key: torch.stack([rows[i % 2][key] for i in range(8)]) for key in rows[0]}
        noises.append(teacher.predict_noise(z, t, conditioning))
    wanted, found = noises
    assert found.dtype is torch.float32
    errors = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert errors.max() < TOLERANCES[dtype]
    assert errors.max() > 0  # that it computed in another precision at all
