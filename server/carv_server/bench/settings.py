"""How much is measured: quick, full, and by minutes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from carv_server.bench.direct import Effort

__all__ = [
    "FULL_MINUTES",
    "GUIDANCES",
    "PROMPTS",
    "WARM_DRAWS",
    "Scale",
    "full_scale",
    "quick_scale",
]

GUIDANCES = (1.0, 7.5, 30.0)
PROMPTS = (
    "a red torus",
    "a blue cone",
    "a green cube",
    "a yellow sphere",
    "a purple cylinder",
    "an orange pyramid",
)
WARM_DRAWS = 8
FULL_MINUTES = 35.0


@dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        prompts: of which fields are optimised and states drawn.
        kinds: of the states of each prompt; None takes one kind for each prompt in turn.
        stops: iterations of the optimisation at its early, middle and late stage.
        effort: of a cell of the headline table.
        warm_requests: past requests that the server's default learns from.
        bank_step, bank_noises: of the banks: every so many timesteps, so many noises.
        bank_prompts: prompts of the table of prompts, a sample of the teacher for each.
        cameras: views of a field in the grid of (R, K).
        grid_renders, grid_draws: R and K of the grid.
        grid_stages: stages at which the grid is measured, for the first prompt.
        grid_effort: of a cell of the grid; replicates of each tuple of views at R = 1.
        direct_states: states of the tables over weightings and estimands, by replicates.
        attribution_examples, attribution_draws: examples, and (t, eps) of the bank they share.
        planner_steps: that a client follows its planner.
        camera_azimuths: of the grid of views.
        refine_runs: runs of RefineGradient.
    """

    prompts: tuple[str, ...]
    kinds: tuple[str, ...] | None
    stops: tuple[int, int, int]
    effort: Effort
    warm_requests: int
    bank_step: int
    bank_noises: int
    bank_prompts: int
    cameras: int
    grid_renders: tuple[int, ...]
    grid_draws: tuple[int, ...]
    grid_stages: tuple[str, ...]
    grid_effort: Effort
    direct_states: int
    attribution_examples: int
    attribution_draws: int
    planner_steps: int
    camera_azimuths: int
    refine_runs: int

    @property
    def bank_grid(self) -> npt.NDArray[np.int64]:
        return np.arange(20, 981, self.bank_step)


def full_scale(minutes: float) -> Scale:
    """About ``minutes`` on two cores: more of them buy prompts first, then smaller errors."""
    share = minutes / FULL_MINUTES
    prompts = int(np.clip(round(3 * share), 1, len(PROMPTS)))
    most = int(np.clip(128 * share, 32, 1024)) // 16 * 16
    scale = Scale(
        prompts=PROMPTS[:prompts],
        kinds=("early", "middle", "late", "blurred", "half noise", "sample"),
        stops=(20, 60, 160),
        effort=Effort(0.04, most),
        warm_requests=40,
        bank_step=30,
        bank_noises=32,
        bank_prompts=len(PROMPTS),
        cameras=8,
        grid_renders=(1, 2, 4),
        grid_draws=(1, 2, 4, 8, 16),
        grid_stages=("early", "middle", "late"),
        grid_effort=Effort(0.04, 24, 8),
        direct_states=2,
        attribution_examples=4,
        attribution_draws=768,
        planner_steps=240,
        camera_azimuths=18,
        refine_runs=1000,
    )
    if share < 0.6:
        scale = replace(scale, grid_stages=("middle",), cameras=6, bank_noises=16)
    return scale


def quick_scale() -> Scale:
    """About two minutes: every table and figure, with wide errors."""
    return Scale(
        prompts=PROMPTS[:3],
        kinds=None,
        stops=(5, 12, 24),
        effort=Effort(0.12, 32, 16),
        warm_requests=24,
        bank_step=60,
        bank_noises=16,
        bank_prompts=3,
        cameras=2,
        grid_renders=(1, 2),
        grid_draws=(1, 4, 8),
        grid_stages=("middle",),
        grid_effort=Effort(0.12, 16, 8),
        direct_states=1,
        attribution_examples=2,
        attribution_draws=192,
        planner_steps=40,
        camera_azimuths=8,
        refine_runs=12,
    )
