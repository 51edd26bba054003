"""The keyword arguments of ``estimate_gradient`` as types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy.typing as npt

from carv_client._kept import LatentsLike
from carv_client._types import (
    Branch,
    ControlVariate,
    Coupling,
    Draws,
    Guidance,
    NamedWeighting,
    Proposal,
    Sampler,
    WireDtype,
)
from carv_client.planner import DrawPlanner

__all__ = ["EstimateOptions", "ObjectiveOptions"]


class ObjectiveOptions(TypedDict, total=False):
    """The keyword arguments of ``estimate_gradient`` that say what is estimated."""

    guidance_scale: float
    guidance: Guidance
    negative_prompt: str | None
    teacher: str | None
    timestep_range: tuple[float, float]
    prior: npt.ArrayLike | None
    weighting: NamedWeighting | npt.ArrayLike
    branches: Sequence[Branch] | None
    noise_coefficient: npt.ArrayLike
    reference_latents: LatentsLike | None
    wire_dtype: WireDtype | None


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
    priority: int
    timeout: float | None
