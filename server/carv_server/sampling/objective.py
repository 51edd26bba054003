"""The estimand: weightings, priors and the tables that a draw looks up.

g_r = E_{t ~ p, eps ~ N(0, I)} [ w(t) ( sum_j a_j(t) eps_hat(z_t, t, c_j) + d(t) eps ) ]
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from carv_server.sampling.schedule import Schedule

__all__ = [
    "DEFAULT_RANGE",
    "NamedWeighting",
    "ObjectiveTables",
    "prior_from_mass",
    "prior_on_range",
    "weighting_values",
]

Float64Array = npt.NDArray[np.float64]

DEFAULT_RANGE = (0.02, 0.98)
"""Timestep range of the default prior, as fractions of the schedule (DreamFusion's)."""


class NamedWeighting(Enum):
    """w(t) by name, with abar = alpha^2 / (alpha^2 + sigma^2)."""

    SDS = "sds"
    """1 - abar (DreamFusion, threestudio)."""
    UNIFORM = "uniform"
    """1."""
    FANTASIA3D = "fantasia3d"
    """sqrt(abar) (1 - abar)."""
    DREAMFUSION_SQRT = "dreamfusion_sqrt"
    """1 - sqrt(abar)."""
    X0 = "x0"
    """sigma / alpha: the residual in units of x."""
    SCORE = "score"
    """1 / sigma: the residual in units of the score."""


@dataclass(frozen=True, eq=False)
class ObjectiveTables:
    """An objective on a teacher's grid of N timesteps. Equal to itself alone, so that what is
    derived from it may be cached by it.

    Attributes:
        prior: p(t), float64 [N], sums to one.
        weighting: w(t), float64 [N]; may be infinite only where the prior is zero.
        branch_coefficients: a_j(t), float64 [B, N].
        noise_coefficient: d(t), float64 [N].
    """

    prior: Float64Array
    weighting: Float64Array
    branch_coefficients: Float64Array
    noise_coefficient: Float64Array

    @cached_property
    def scale(self) -> Float64Array:
        """|w(t)|, float64 [N]; zero where the prior is."""
        return np.abs(np.where(self.prior > 0, self.weighting, 0.0))

    @cached_property
    def largest_scale(self) -> float:
        return float(self.scale.max())

    @cached_property
    def residual_digest(self) -> bytes:
        """SHA-256 over the coefficients a_j(t) and d(t)."""
        content = hashlib.sha256(np.ascontiguousarray(self.branch_coefficients).tobytes())
        content.update(self.noise_coefficient.tobytes())
        return content.digest()


def weighting_values(name: NamedWeighting, schedule: Schedule) -> Float64Array:
    """w(t) on the grid, float64 [N]; infinite where alpha or sigma vanishes in a quotient."""
    abar = schedule.alpha_bar
    with np.errstate(divide="ignore"):
        match name:
            case NamedWeighting.SDS:
                return 1.0 - abar
            case NamedWeighting.UNIFORM:
                return np.ones_like(abar)
            case NamedWeighting.FANTASIA3D:
                return np.sqrt(abar) * (1.0 - abar)
            case NamedWeighting.DREAMFUSION_SQRT:
                return 1.0 - np.sqrt(abar)
            case NamedWeighting.X0:
                return schedule.sigma / schedule.alpha
            case NamedWeighting.SCORE:
                return 1.0 / schedule.sigma


def prior_on_range(timesteps: int, minimum: float, maximum: float) -> Float64Array:
    """Uniform over round(minimum N) .. round(maximum N), both included, clipped to the grid.

    Args:
        timesteps: N.
        minimum, maximum: fractions of the schedule, 0 <= minimum <= maximum <= 1.
    """
    first = min(round(minimum * timesteps), timesteps - 1)
    last = min(round(maximum * timesteps), timesteps - 1)
    mass = np.zeros(timesteps)
    mass[first : last + 1] = 1.0 / (last + 1 - first)
    return mass


def prior_from_mass(mass: npt.ArrayLike) -> Float64Array:
    """Normalise non-negative masses, float64 [N].

    Raises:
        ValueError: a negative or non-finite mass, or none above zero.
    """
    values = np.asarray(mass, dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("masses must be finite and at least zero")
    # Scaling first keeps the sum finite for masses near the float64 limit.
    largest = values.max(initial=0.0)
    if largest <= 0:
        raise ValueError("at least one mass must be above zero")
    scaled = values / largest
    return scaled / scaled.sum()
