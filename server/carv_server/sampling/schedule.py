"""Noise schedules on a grid of timesteps: z_t = alpha[t] * x + sigma[t] * eps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

__all__ = [
    "Schedule",
    "ScheduleKind",
    "bounded_log_snr",
    "discrete_schedule",
    "flow_schedule",
]

Float64Array = npt.NDArray[np.float64]

_LOG_SNR_LIMIT = 12.0  # beyond it z_t is the latents or the noise, to float precision


class ScheduleKind(Enum):
    DISCRETE = "discrete"
    """alpha^2 + sigma^2 = 1; the network is told the index t."""
    FLOW = "flow"
    """alpha = 1 - sigma; the network is told N * sigma."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule. Index 0 is the least noise. Equal to itself alone, so that what is derived
    from it may be cached by it.

    Attributes:
        alpha, sigma: float64 [N], sigma > 0.
        model_timesteps: float64 [N], what the network is given for each index.
    """

    kind: ScheduleKind
    alpha: Float64Array
    sigma: Float64Array
    model_timesteps: Float64Array

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def alpha_bar(self) -> Float64Array:
        """alpha^2 / (alpha^2 + sigma^2), float64 [N]: the cumulative product of a discrete
        schedule, and the value of equal signal-to-noise ratio on any other."""
        return self.alpha**2 / (self.alpha**2 + self.sigma**2)

    @property
    def log_snr(self) -> Float64Array:
        """log(alpha^2 / sigma^2), float64 [N]; -inf at zero terminal SNR."""
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log(self.alpha) - np.log(self.sigma))


def bounded_log_snr(log_snr: Float64Array) -> Float64Array:
    """Log-SNR to lay bins over: finite at zero terminal SNR too."""
    return np.clip(log_snr, -_LOG_SNR_LIMIT, _LOG_SNR_LIMIT)


def discrete_schedule(alphas_cumprod: npt.ArrayLike) -> Schedule:
    """The variance-preserving schedule of a DDPM (Ho et al. 2020, Eq. 4).

    Args:
        alphas_cumprod: [N], each in [0, 1).

    Raises:
        ValueError: a value outside [0, 1).
    """
    abar = np.asarray(alphas_cumprod, dtype=np.float64)
    if abar.ndim != 1 or len(abar) == 0 or not np.all((abar >= 0) & (abar < 1)):
        raise ValueError("alphas_cumprod must be a non-empty vector of values in [0, 1)")
    return Schedule(
        ScheduleKind.DISCRETE,
        np.sqrt(abar),
        np.sqrt(1.0 - abar),
        np.arange(len(abar), dtype=np.float64),
    )


def flow_schedule(timesteps: int, shift: float = 1.0) -> Schedule:
    """Rectified flow, z = (1 - s) x + s eps, on the grid s_i = (i + 1) / N, then shifted:
    s -> shift s / (1 + (shift - 1) s) (Esser et al. 2024, Eq. 23).

    Raises:
        ValueError: timesteps or shift not positive.
    """
    if timesteps < 1 or not shift > 0:
        raise ValueError("a flow schedule needs timesteps >= 1 and shift > 0")
    s = np.arange(1, timesteps + 1, dtype=np.float64) / timesteps
    s = shift * s / (1.0 + (shift - 1.0) * s)
    return Schedule(ScheduleKind.FLOW, 1.0 - s, s, timesteps * s)
