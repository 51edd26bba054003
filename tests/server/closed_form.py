"""The oracle teacher's noise prediction and the estimator's formula, in numpy and float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carv.noise import draw_noise
from tests.support.oracle import EVENT_SHAPE, oracle_mixture, oracle_schedule

__all__ = ["UNCONDITIONAL", "noise_of", "noisy", "predicted", "relative_error"]

UNCONDITIONAL = 3

Float64Array = npt.NDArray[np.float64]


def noise_of(
    seed: int, render: int, indices: npt.ArrayLike, signs: npt.ArrayLike | None = None
) -> Float64Array:
    """Signed noise of one render's draws, [K, *EVENT_SHAPE]."""
    noise = np.stack(
        [draw_noise(seed, render, int(i), EVENT_SHAPE) for i in np.asarray(indices)]
    ).astype(np.float64)
    if signs is not None:
        noise *= np.asarray(signs, dtype=np.float64).reshape(-1, 1, 1, 1)
    return noise


def noisy(x: npt.ArrayLike, timesteps: npt.ArrayLike, noise: Float64Array) -> Float64Array:
    """z_t of one render's draws, [K, *EVENT_SHAPE]."""
    schedule, t = oracle_schedule(), np.asarray(timesteps)
    shape = (-1, 1, 1, 1)
    return schedule.alpha[t].reshape(shape) * np.asarray(x, np.float64) + (
        schedule.sigma[t].reshape(shape) * noise
    )


def predicted(z: Float64Array, timesteps: npt.ArrayLike, label: int) -> Float64Array:
    """eps_hat(z, t, m), [K, *EVENT_SHAPE]: minus sigma times the gradient of log p_t, by the
    component's own Gaussian or by the mixture's responsibilities."""
    mixture, schedule = oracle_mixture(), oracle_schedule()
    out = np.empty_like(z)
    for k, t in enumerate(np.asarray(timesteps)):
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        variance = alpha**2 * mixture.scales**2 + sigma**2
        gaps = z[k] - alpha * mixture.means
        if label != UNCONDITIONAL:
            responsibility = np.eye(3)[label]
        else:
            squared = np.sum(gaps**2, axis=(1, 2, 3))
            log_density = np.log(mixture.weights) - 0.5 * (
                squared / variance + z[k].size * np.log(variance)
            )
            responsibility = np.exp(log_density - log_density.max())
            responsibility /= responsibility.sum()
        out[k] = sigma * np.einsum("m,mchw->chw", responsibility / variance, gaps)
    return out


def relative_error(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """||found - expected|| / ||expected||."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
