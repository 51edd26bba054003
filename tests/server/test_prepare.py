"""From flags to teachers ready to serve: number format, microbatch size, threads, allocator."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_server import host
from carv_server.config import ServerConfig
from carv_server.prepare import as_prepared, load_teachers
from carv_server.replicas import loading, precision
from carv_server.scheduler import SchedulerConfig
from carv_server.teachers.protocol import Teacher, Tensors
from carv_server.teachers.registry import EMBEDDED, TeacherRegistration
from tests.server.teachers import Wrapped, oracle_teacher
from tests.support.oracle import write_oracle_folder


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_reduced_precision_is_compared_with_float32(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_teachers(ServerConfig(device="cpu", dtype="bfloat16", torch_threads=1))
    found = re.search(r"bfloat16; the gradient of a fixed probe is within (\S+) of", caplog.text)
    assert found, caplog.text
    # A rounding step of bfloat16 is 2^-8; guidance at 7.5 multiplies what is left of it.
    assert 2**-10 < float(found[1]) < 2**-5


def test_a_device_that_float32_does_not_fit_on_serves_what_fits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks with: float32 that has to be loaded first."""
    by_folder = loading.load_teacher

    def load(registration: TeacherRegistration, **given: Any) -> Teacher:
        if given["dtype"] is torch.float32:
            raise torch.OutOfMemoryError("float32 is twice as large")
        return by_folder(registration, **given)

    monkeypatch.setattr(loading, "load_teacher", load)
    teacher = loading.load_in(EMBEDDED, torch.device("cpu"), "bfloat16")
    assert teacher.description.digest != ""
    assert "not compared with float32: out of memory" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        loading.load_in(EMBEDDED, torch.device("cpu"), "float32")


def test_a_teacher_without_a_network_has_no_format(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registration = TeacherRegistration("mixture", write_oracle_folder(tmp_path))
    config = ServerConfig(teachers=(registration,), device="cpu", dtype="auto", compile=True)
    with caplog.at_level(logging.INFO):
        (prepared,) = load_teachers(config).values()
    assert "probe" not in caplog.text and "no network to compile" in caplog.text
    assert prepared.evaluation_budget == 64


def test_tuned_and_stated_budgets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registration = TeacherRegistration("mixture", write_oracle_folder(tmp_path))
    stated = SchedulerConfig(evaluation_budget=48)
    config = ServerConfig(teachers=(registration,), device="cpu", scheduler=stated)
    (prepared,) = load_teachers(config).values()
    assert (prepared.evaluation_budget, prepared.warm_sizes) == (48, (1, 48))
    assert as_prepared(oracle_teacher(), config).evaluation_budget == 48
    tuned = ServerConfig(teachers=(registration,), device="cpu", scheduler=stated, tune=True)
    with caplog.at_level(logging.INFO):
        (prepared,) = load_teachers(tuned).values()
    found = re.search(r"microbatches of (\d+) evaluations; measured .* 1: \d+, 2: ", caplog.text)
    assert found and int(found[1]) == prepared.evaluation_budget
    assert prepared.evaluation_budget in {2**i for i in range(10)}


class Timed(Wrapped):
    """Advances a clock that it shares."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self._clock, self._seconds = clock, seconds

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        self._clock[0] += self._seconds
        return super().predict_noise(z_t, timesteps, conditioning)


@pytest.mark.parametrize(("seconds", "wins"), [(0.4, True), (0.6, False), (15.0, False)])
def test_a_format_has_to_win_clearly(seconds: float, wins: bool) -> None:
    now = [0.0]
    reduced, exact = Timed(now, seconds), Timed(now, 1.0)
    assert precision.is_faster(reduced, exact, lambda: now[0]) is wins


def test_what_a_device_may_be_good_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cuda(major: int) -> torch.dtype | None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
        return precision.reduced_dtype(torch.device("cuda"))

    assert [on_cuda(major) for major in (6, 7, 8, 9)] == [
        None,
        torch.float16,
        torch.bfloat16,
        torch.bfloat16,
    ]
    assert precision.reduced_dtype(torch.device("cpu")) in (None, torch.bfloat16)


QUOTAS = {"max 100000": None, "100000 100000": 1, "50000 100000": 1, "": None}


@pytest.mark.parametrize(("quota", "cores"), QUOTAS.items())
def test_usable_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    every = len(os.sched_getaffinity(0))
    assert host.usable_cores(tmp_path / "cpu.max") == min(cores or every, every)
    assert host.usable_cores(tmp_path / "none") == every
    assert 1 <= host.forward_threads() <= max(1, every - 1)


def test_the_undisturbed_clock_leaves_out_what_others_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time waited for a processor is the second number, in nanoseconds."""
    statistics = tmp_path / "schedstat"
    monkeypatch.setattr(host, "_SCHEDULER_STATISTICS", statistics)
    monkeypatch.setattr(host.time, "perf_counter", lambda: 100.0)
    assert host.undisturbed_seconds() == 100.0, "no statistics here"
    statistics.write_text("123456789 2500000000 42\n")
    assert host.undisturbed_seconds() == 97.5
