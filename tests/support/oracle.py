"""The Gaussian-mixture teacher that tests compare with closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from carv_server.sampling.schedule import Schedule, discrete_schedule
from carv_server.teachers.analytic import GaussianMixture

__all__ = ["EVENT_SHAPE", "TIMESTEPS", "oracle_mixture", "oracle_schedule", "write_oracle_folder"]

EVENT_SHAPE = (2, 4, 4)
TIMESTEPS = 1000


def oracle_mixture() -> GaussianMixture:
    """Three well-separated components of different widths."""
    rng = np.random.default_rng(20260521)
    return GaussianMixture(
        weights=np.array([0.5, 0.3, 0.2]),
        means=rng.normal(size=(3, *EVENT_SHAPE)),
        scales=np.array([0.3, 0.6, 1.0]),
    )


def oracle_schedule() -> Schedule:
    """Stable Diffusion's scaled-linear schedule."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS) ** 2
    return discrete_schedule(np.cumprod(1.0 - betas))


def write_oracle_folder(folder: Path) -> Path:
    """A folder that ``carv serve --teacher mixture=FOLDER`` serves."""
    mixture, schedule = oracle_mixture(), oracle_schedule()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mixture.json").write_text(
        json.dumps(
            {
                "weights": mixture.weights.tolist(),
                "means": mixture.means.tolist(),
                "scales": mixture.scales.tolist(),
                "schedule": {"alphas_cumprod": (schedule.alpha**2).tolist()},
            }
        )
    )
    return folder
