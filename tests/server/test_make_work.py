"""A plan's draws as the rows of a work."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from carv_server.replicas.protocol import Branch, Conditioning
from carv_server.rows import make_work
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import explicit_plan

TIMESTEPS = 40


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("predicted", [False, True])
def test_a_lone_draw_is_laid_out_as_any_other(branches: int, predicted: bool) -> None:
    """Against the first of two renders with the same draw."""
    rng = np.random.default_rng(3)
    objective = None
    if not predicted:
        tables = rng.normal(size=(3 + branches, TIMESTEPS))
        objective = ObjectiveTables(np.abs(tables[0]), tables[1], tables[3:], tables[2])
    conditioned = [
        Branch([Conditioning(str(j), {"class_label": torch.tensor(j)})]) for j in range(branches)
    ]
    x = rng.normal(size=(2, 2, 3)).astype(np.float32)

    def work_of(renders: int, draw: tuple[int, int, float, float]) -> object:
        timestep, index, sign, weight = (np.full((renders, 1), value) for value in draw)
        plan = replace(
            explicit_plan(timestep, index, sign, weight),
            groups=np.full_like(index, 4),
            cells=np.full_like(index, 2),
            control_coefficients=np.full_like(weight, -0.7),
        )
        return make_work(plan, x[:renders], None, conditioned, objective, 9)

    for draw in ((7, 2**32 - 1, -1.0, 0.3), (0, 0, 1.0, 0.0)):
        lone, two = work_of(1, draw), work_of(2, draw)
        for field in fields(lone):  # pyright: ignore[reportArgumentType]
            ours, theirs = getattr(lone, field.name), getattr(two, field.name)
            if isinstance(ours, np.ndarray) and field.name != "latents":
                assert ours.dtype == theirs.dtype, field.name
                np.testing.assert_array_equal(ours, theirs[..., :1], err_msg=field.name)
