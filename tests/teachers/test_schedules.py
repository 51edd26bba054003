"""Schedules read from a scheduler folder equal diffusers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.schedule import ScheduleKind
from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.schedules import read_schedule

STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "num_train_timesteps": 50, "beta_end": 0.3},
        STABLE_DIFFUSION,
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "laplace"},
        {"trained_betas": [0.01, 0.02, 0.05, 0.3, 0.9]},
        {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True},
    ],
    ids=lambda config: "-".join(map(str, config.values()))[:40],
)
def test_discrete_schedules(tmp_path: Path, config: dict[str, Any]) -> None:
    scheduler = DDPMScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    schedule, prediction = read_schedule(tmp_path)
    abar = scheduler.alphas_cumprod.double().numpy()
    assert schedule.kind is ScheduleKind.DISCRETE and prediction is PredictionType.EPSILON
    # diffusers keeps float32; where that rounds to one, sigma is kept just above zero.
    np.testing.assert_allclose(schedule.alpha**2, abar, rtol=1e-12, atol=1.1e-8)
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1.0, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar, abar, rtol=1e-12, atol=1.1e-8)
    assert schedule.sigma.min() > 0
    assert np.array_equal(schedule.model_timesteps, np.arange(len(abar)))


def test_zero_terminal_snr(tmp_path: Path) -> None:
    DDPMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=True).save_pretrained(tmp_path)
    schedule, _ = read_schedule(tmp_path)
    assert schedule.alpha[-1] == 0.0 and schedule.sigma[-1] == 1.0
    assert schedule.log_snr[-1] == -np.inf and np.isfinite(schedule.log_snr[:-1]).all()


@pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_other_schedulers_have_the_same_training_schedule(tmp_path: Path, scheduler: Any) -> None:
    made = scheduler(**STABLE_DIFFUSION, prediction_type="v_prediction")
    made.save_pretrained(tmp_path)
    schedule, prediction = read_schedule(tmp_path)
    assert prediction is PredictionType.V
    abar = made.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(schedule.alpha**2, abar, rtol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(tmp_path: Path, shift: float) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.save_pretrained(tmp_path)
    schedule, prediction = read_schedule(tmp_path)
    sigma = scheduler.sigmas.double().numpy()[::-1]  # diffusers goes from noise to data
    assert schedule.kind is ScheduleKind.FLOW and prediction is PredictionType.FLOW
    np.testing.assert_allclose(schedule.sigma, sigma, rtol=5e-7)
    np.testing.assert_allclose(schedule.alpha, 1 - sigma, atol=2e-7)
    told = scheduler.timesteps.double().numpy()[::-1]
    np.testing.assert_allclose(schedule.model_timesteps, told, rtol=5e-7)
    x, eps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for i in (0, 400, 999):
        z = scheduler.scale_noise(x[None], scheduler.timesteps[999 - i][None], eps[None])[0]
        ours = schedule.alpha[i] * x.double() + schedule.sigma[i] * eps.double()
        torch.testing.assert_close(z.double(), ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "scheduler_config.json cannot be read"),
        ("[]", "must hold an object"),
        ({"beta_schedule": "linear", "prediction_type": "score"}, "'score' is none of epsilon"),
        ({"beta_schedule": "nonsense"}, "'nonsense' is unknown to diffusers"),
        (
            {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 1348.0},
            "ScoreSdeVeScheduler states neither beta_schedule nor trained_betas",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "depends on the resolution",
        ),
    ],
)
def test_refusals(tmp_path: Path, config: Any, message: str) -> None:
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(TeacherFolderError, match=message):
        read_schedule(tmp_path)
