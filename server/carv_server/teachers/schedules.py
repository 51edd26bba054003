"""diffusers scheduler configs to schedules: only the training noise schedule is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDPMScheduler

from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.schedule import Schedule, discrete_schedule, flow_schedule

__all__ = ["read_schedule"]

_SMALLEST_SIGMA = 1e-4


def read_schedule(folder: Path) -> tuple[Schedule, PredictionType]:
    """Schedule and prediction type of a ``scheduler/`` folder.

    Any of diffusers' training schedules (linear, scaled_linear, squaredcos_cap_v2, sigmoid,
    trained_betas, zero terminal SNR) and flow matching.

    Raises:
        ValueError: an unknown prediction type or a schedule that is none.
    """
    config: dict[str, Any] = json.loads((folder / "scheduler_config.json").read_text())
    if "FlowMatch" in str(config.get("_class_name", "")):
        if config.get("use_dynamic_shifting"):
            raise ValueError(f"{folder}: use_dynamic_shifting depends on the resolution; fix a shift")
        steps, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0))
        return flow_schedule(steps, shift), PredictionType.FLOW
    try:
        prediction_type = PredictionType(config.get("prediction_type", "epsilon"))
    except ValueError:
        raise ValueError(
            f"{folder}: prediction_type {config['prediction_type']!r} is none of "
            f"{', '.join(p.value for p in PredictionType)}"
        ) from None
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
    scheduler = DDPMScheduler(**known)
    abar = scheduler.alphas_cumprod.double().numpy()
    # abar can round to 1 at the first step of very fine schedules; sigma must stay above zero.
    return discrete_schedule(np.clip(abar, 0.0, 1.0 - _SMALLEST_SIGMA**2)), prediction_type
