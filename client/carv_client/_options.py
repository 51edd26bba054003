"""The keyword arguments of ``estimate_gradient`` as a type."""

from __future__ import annotations

import numpy.typing as npt

from carv_client._types import (
    ControlVariate,
    Coupling,
    Draws,
    ObjectiveOptions,
    Proposal,
    Sampler,
)
from carv_client.planner import DrawPlanner

__all__ = ["EstimateOptions"]


class EstimateOptions(ObjectiveOptions, total=False):
    """The keyword arguments of ``estimate_gradient``, for functions that pass them on."""

    draws: Draws
    planner: DrawPlanner | None
    seed: int | None
    sampler: Sampler | None
    proposal: Proposal | None
    coupling: Coupling | None
    control_variate: ControlVariate | None
    history: str
    timesteps: npt.ArrayLike | None
    noise_indices: npt.ArrayLike | None
    signs: npt.ArrayLike | None
    importance_weights: npt.ArrayLike | None
    return_draws: bool
    return_half_estimates: bool
    timeout: float | None
