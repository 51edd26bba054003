"""Draws that share their noise are one group, which no microbatch cuts: the teacher still sees at
most the evaluation budget at once, and the answer does not depend on it."""

from __future__ import annotations

import numpy as np
import torch

from carv_server.replicas.forward import evaluate
from carv_server.replicas.protocol import Branch, Conditioning
from carv_server.rows import make_work
from carv_server.sampling.objective import NamedWeighting, ObjectiveTables, weighting_values
from carv_server.sampling.plan import explicit_plan
from carv_server.teachers.protocol import Tensors
from tests.server.teachers import Wrapped
from tests.support.oracle import EVENT_SHAPE, oracle_schedule

DRAWS, BUDGET = 50, 8


class CountingTeacher(Wrapped):
    """Records how many rows each forward held."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        self.rows.append(len(z_t))
        return super().predict_noise(z_t, timesteps, conditioning)


def test_a_group_above_the_budget_is_evaluated_in_pieces() -> None:
    timesteps = len(oracle_schedule())
    shape = (1, DRAWS)
    plan = explicit_plan(
        np.linspace(20, 980, DRAWS).astype(np.int64)[None],
        np.zeros(shape, dtype=np.int64),
        np.ones(shape),
        np.ones(shape),
    )
    assert np.unique(plan.groups).tolist() == [0]
    objective = ObjectiveTables(
        np.full(timesteps, 1 / timesteps),
        weighting_values(NamedWeighting.SDS, oracle_schedule()),
        np.stack([np.full(timesteps, 3.0), np.full(timesteps, -2.0)]),
        -np.ones(timesteps),
    )
    branches = [
        Branch([Conditioning(str(label), {"class_label": torch.tensor(label)})]) for label in (0, 2)
    ]
    x = np.random.default_rng(0).normal(size=(1, *EVENT_SHAPE)).astype(np.float32)
    work = make_work(plan, x, None, branches, objective, 5)
    teacher = CountingTeacher()
    (whole,) = evaluate(teacher, [work])
    assert teacher.rows == [2 * DRAWS]
    teacher.rows.clear()
    (pieces,) = evaluate(teacher, [work], BUDGET)
    assert max(teacher.rows) == BUDGET and sum(teacher.rows) == 2 * DRAWS
    assert whole.reduction is not None and pieces.reduction is not None
    expected = whole.reduction.moments[0, DRAWS].mean
    # Float32 forwards of other batch sizes round differently.
    torch.testing.assert_close(
        pieces.reduction.moments[0, DRAWS].mean, expected, rtol=1e-5, atol=1e-5
    )
