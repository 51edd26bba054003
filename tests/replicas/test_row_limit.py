"""Out of memory: rows are halved and tried again, and the limit is remembered."""

from __future__ import annotations

import pytest
import torch

from carv_server.replicas.forward import Forward
from carv_server.replicas.row_limit import is_out_of_memory
from carv_server.teachers.protocol import Classes, Tensors
from tests.replicas.test_forward import assert_equal, conditionings_of
from tests.replicas.works import make
from tests.server.teachers import Wrapped
from tests.support.plain_forward import plain_forward

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:120] DefaultCPUAllocator: can't allocate memory"),
]


class SmallDevice(Wrapped):
    """Raises above so many rows, and wherever a row is at the poisoned timestep."""

    def __init__(self, most: int, error: Exception, poison: int = -1) -> None:
        super().__init__()
        self.most, self._error, self._poison = most, error, poison
        self.rows: list[int] = []

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        self.rows.append(len(z_t))
        if len(z_t) > self.most or bool((timesteps == self._poison).any()):
            raise self._error
        return super().predict_noise(z_t, timesteps, conditioning)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_rows_are_halved_until_they_fit_and_the_limit_stays(error: Exception) -> None:
    teacher = SmallDevice(5, error)
    conditionings = conditionings_of(teacher, [Classes((0, 1))])
    works = [make(teacher, conditionings, seed, draws=10, branches=2) for seed in range(2)]
    forward = Forward(teacher, 64)
    results = forward.evaluate(works)
    assert teacher.rows == [40, 20, 10, *[5] * 8]
    for work, result in zip(works, results, strict=True):
        assert_equal(work, result, plain_forward(teacher, work), 1e-6)
    teacher.rows.clear()
    forward.evaluate(works)
    assert teacher.rows == [5] * 8, "no second attempt at what did not fit"


def test_a_row_that_fails_alone_lowers_no_limit() -> None:
    teacher = SmallDevice(64, MemoryError(), poison=7)
    conditionings = conditionings_of(teacher, [Classes((0,))])
    bad = make(teacher, conditionings, 1, draws=8)
    bad.timesteps[5] = 7
    forward = Forward(teacher, 64)
    with pytest.raises(MemoryError):
        forward.evaluate([bad])
    assert teacher.rows[-1] == 1
    teacher.rows.clear()
    forward.evaluate([make(teacher, conditionings, 2, draws=8)])
    assert teacher.rows == [8]


def test_other_errors_are_not_retried() -> None:
    teacher = SmallDevice(4, RuntimeError("CUDA error: device-side assert triggered"))
    conditionings = conditionings_of(teacher, [Classes((0,))])
    with pytest.raises(RuntimeError, match="assert"):
        Forward(teacher, 64).evaluate([make(teacher, conditionings, 1, draws=8)])
    assert teacher.rows == [8]
    assert not is_out_of_memory(ValueError("out of memory"))
