"""The simulated device: its law, its timing, and what its file may say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.protocol import Classes, SourceError, Unconditional
from carv_server.teachers.registry import TeacherRegistration, load_teacher
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher


def _load(folder: Path, **content: object):
    (folder / "simulated.json").write_text(json.dumps(content))
    registration = TeacherRegistration("simulated", folder)
    return load_teacher(registration, device=torch.device("cpu"), dtype=torch.float32)


def test_predicts_the_noise_of_a_standard_normal():
    """E[eps | z] = sigma z where x and eps are standard normal: regression on a sample."""
    teacher = SimulatedTeacher((1, 4), DeviceTiming(0.0, 0.0))
    schedule, rng = teacher.description.schedule, np.random.default_rng(0)
    for t in (100, 500, 900):
        x, eps = rng.standard_normal((2, 40_000, 1, 4))
        z = schedule.alpha[t] * x + schedule.sigma[t] * eps
        found = teacher.predict_noise(
            torch.tensor(z, dtype=torch.float32), torch.full((len(z),), t), {}
        ).numpy()
        assert np.mean((eps - found) * z) == pytest.approx(0.0, abs=0.02)


def test_schedule_preserves_variance_and_ends_in_noise():
    schedule = SimulatedTeacher((1,), DeviceTiming(0.0, 0.0)).description.schedule
    assert np.allclose(schedule.alpha**2 + schedule.sigma**2, 1.0)
    assert schedule.sigma[0] < 0.1 and schedule.sigma[-1] > 0.99
    assert (np.diff(schedule.sigma) >= 0).all()


def test_a_forward_takes_the_launch_and_its_rows():
    teacher = SimulatedTeacher((1,), DeviceTiming(0.02, 0.005))
    assert teacher.timing.seconds(4) == pytest.approx(0.04)
    start = time.perf_counter()
    teacher.predict_noise(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), {})
    assert time.perf_counter() - start >= 0.04


def test_loads_from_its_file_and_takes_no_conditioning(tmp_path: Path):
    teacher = _load(tmp_path, event_shape=[4, 8, 8], launch_seconds=0, row_seconds=0.001)
    assert teacher.description.event_shape == (4, 8, 8)
    assert len(teacher.encode(Unconditional())) == 1
    with pytest.raises(SourceError, match="unconditional"):
        teacher.encode(Classes((1,)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"event_shape": [4]}, "launch_seconds, row_seconds"),
        ({"event_shape": [0], "launch_seconds": 0, "row_seconds": 0}, "event_shape"),
        ({"event_shape": [], "launch_seconds": 0, "row_seconds": 0}, "event_shape"),
        ({"event_shape": 4, "launch_seconds": 0, "row_seconds": 0}, "simulated.json"),
        ({"event_shape": [4], "launch_seconds": -1, "row_seconds": 0}, "0 or more"),
        ({"event_shape": [4], "launch_seconds": "x", "row_seconds": 0}, "simulated.json"),
        (
            {"event_shape": [4], "launch_seconds": 0, "row_seconds": 0, "arithmetic": 0},
            "neither true nor false",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, content: dict, message: str):
    with pytest.raises(TeacherFolderError, match=message):
        _load(tmp_path, **content)


def test_without_arithmetic_zeros_after_the_same_time_and_another_digest(tmp_path: Path):
    stated = {"event_shape": [2], "launch_seconds": 0.02, "row_seconds": 0.005}
    plain, idle = _load(tmp_path, **stated), _load(tmp_path, **stated, arithmetic=False)
    assert plain.description.arithmetic and not idle.description.arithmetic
    assert plain.description.digest != idle.description.digest
    start = time.perf_counter()
    found = idle.predict_noise(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), {})
    assert time.perf_counter() - start >= 0.04
    assert torch.equal(found, torch.zeros(4, 2))
