"""The microbatch size against devices whose speed and memory are known, on a clock of
their own."""

from __future__ import annotations

import pytest
import torch

from carv_server.replicas.tuning import MemoryUse, choose_rows, device_memory, tune_rows
from carv_server.teachers.protocol import Tensors
from tests.server.teachers import Wrapped

PLENTY = MemoryUse(lambda: 0, 1 << 40)


class Device(Wrapped):
    """Spends ``launch + rows * row`` seconds of its own clock, and ``bytes_a_row``."""

    def __init__(self, launch: float, row: float, *, most: int = 1 << 20) -> None:
        super().__init__()
        self.now, self.peak, self.forwards = 0.0, 100, 0
        self._launch, self._row, self._most = launch, row, most

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        if len(z_t) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.forwards += 1
        self.now += self._launch + self._row * len(z_t)
        self.peak = max(self.peak, 100 + 10 * len(z_t))
        return super().predict_noise(z_t, timesteps, conditioning)

    def clock(self) -> float:
        return self.now


def test_the_smallest_size_that_is_nearly_as_fast() -> None:
    """n / (6 + n): 0.914 at 64, 0.955 at 128, 0.988 at 512; 128 is the first within 5 %."""
    device = Device(6e-3, 1e-3)
    tuning = tune_rows(device, seconds=60.0, memory=PLENTY, clock=device.clock)
    assert tuning.rows == 128
    assert list(tuning.rates) == [2**i for i in range(10)]
    assert tuning.rates[64] == pytest.approx(64 / 0.070)


def test_a_device_without_launch_cost_takes_the_smallest() -> None:
    device = Device(0.0, 1e-3)
    assert tune_rows(device, seconds=60.0, memory=PLENTY, clock=device.clock).rows == 1


def test_it_ends_with_its_time() -> None:
    device = Device(0.06, 2.5e-3)
    tuning = tune_rows(device, seconds=2.0, memory=PLENTY, clock=device.clock)
    assert device.now < 2.5 and "2 s" in tuning.ended_by
    assert tuning.rows == max(tuning.rates) > 1
    slow = Device(30.0, 10.0)
    tuning = tune_rows(slow, seconds=2.0, memory=PLENTY, clock=slow.clock)
    assert tuning.rows == 1 and slow.forwards == 2, "one to warm up, one that is timed"


def test_it_ends_ahead_of_the_memory_bound() -> None:
    device = Device(6e-3, 1e-3)
    memory = MemoryUse(lambda: device.peak, 100 + 10 * 50)
    tuning = tune_rows(device, seconds=60.0, memory=memory, clock=device.clock)
    assert max(tuning.rates) == 32 and device.peak <= memory.bound
    assert "memory" in tuning.ended_by


def test_a_size_that_does_not_fit_is_not_taken() -> None:
    device = Device(6e-3, 1e-3, most=20)
    tuning = tune_rows(device, seconds=60.0, memory=PLENTY, clock=device.clock)
    assert tuning.rows == max(tuning.rates) == 16
    assert "out of memory at 32 rows" in tuning.ended_by
    nothing = Device(1.0, 1.0, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        tune_rows(nothing, memory=PLENTY, clock=nothing.clock)


def test_choose_rows() -> None:
    assert choose_rows({1: 10.0, 2: 96.0, 4: 100.0, 8: 99.0}) == 2
    assert choose_rows({1: 10.0, 2: 94.0, 4: 100.0, 8: 99.0}) == 4


def test_device_memory_of_a_cpu_is_the_process() -> None:
    memory = device_memory(torch.device("cpu"))
    before = memory.peak()
    grown = torch.ones(64 << 20)  # 256 MiB, touched
    assert memory.peak() - before > 128 << 20 or before > grown.nbytes
    assert memory.bound > before
