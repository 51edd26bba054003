"""diffusers scheduler configs to schedules: only the training noise schedule is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDPMScheduler

from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.schedule import Schedule, discrete_schedule, flow_schedule
from carv_server.teachers.folder import TeacherFolderError, read_json

__all__ = ["read_schedule"]

_SMALLEST_SIGMA = 1e-4


def read_schedule(folder: Path) -> tuple[Schedule, PredictionType]:
    """Schedule and prediction type of a ``scheduler/`` folder.

    Any of diffusers' training schedules (linear, scaled_linear, squaredcos_cap_v2, sigmoid,
    laplace, trained_betas, zero terminal SNR) and flow matching.

    Raises:
        TeacherFolderError: no config, an unknown prediction type, or a schedule that is none of
            these (variance-exploding and EDM schedulers state no betas).
    """
    config: dict[str, Any] = read_json(folder / "scheduler_config.json")
    if "FlowMatch" in str(config.get("_class_name", "")):
        if config.get("use_dynamic_shifting"):
            raise TeacherFolderError(
                f"{folder}: use_dynamic_shifting depends on the resolution; fix a shift"
            )
        steps, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0))
        return flow_schedule(steps, shift), PredictionType.FLOW
    try:
        prediction_type = PredictionType(config.get("prediction_type", "epsilon"))
    except ValueError:
        raise TeacherFolderError(
            f"{folder}: prediction_type {config['prediction_type']!r} is none of "
            f"{', '.join(p.value for p in PredictionType)}"
        ) from None
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        # DDPMScheduler's own defaults would be served without a word.
        raise TeacherFolderError(
            f"{folder}: {config.get('_class_name', 'the scheduler')} states neither beta_schedule "
            "nor trained_betas; served are DDPM-like schedules and flow matching"
        )
    # from_config passes over what DDPMScheduler does not know; the training schedule has the
    # same keys in every discrete scheduler.
    known = {
        key: config[key]
        for key in (
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "beta_schedule",
            "trained_betas",
            "rescale_betas_zero_snr",
        )
        if key in config
    }
    try:
        scheduler = DDPMScheduler(**known)
    except NotImplementedError:
        raise TeacherFolderError(
            f"{folder}: beta_schedule {config['beta_schedule']!r} is unknown to diffusers"
        ) from None
    abar = scheduler.alphas_cumprod.double().numpy()
    # abar can round to 1 at the first step of very fine schedules; sigma must stay above zero.
    return discrete_schedule(np.clip(abar, 0.0, 1.0 - _SMALLEST_SIGMA**2)), prediction_type
