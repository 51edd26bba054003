"""A teacher's schedule on its device, and the one conversion to noise units."""

from __future__ import annotations

import torch

from carv_server.sampling.prediction import PredictionType, to_noise
from carv_server.sampling.schedule import Schedule

__all__ = ["NoiseConverter"]


class NoiseConverter:
    """Looks up alpha, sigma and network timesteps by grid index; converts predictions."""

    def __init__(
        self, schedule: Schedule, prediction_type: PredictionType, device: torch.device
    ) -> None:
        def to_device(values: object) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        self._alpha = to_device(schedule.alpha)
        self._sigma = to_device(schedule.sigma)
        self._model_timesteps = to_device(schedule.model_timesteps)
        self._prediction_type = prediction_type

    def model_timesteps(self, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network is told, float32 [n]."""
        return self._model_timesteps[timesteps]

    def to_noise(
        self, prediction: torch.Tensor, z_t: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Network output [n, C', ...] to eps_hat, float32 like ``z_t`` [n, C, ...].

        Channels beyond C are a learned variance and are dropped.
        """
        shape = (-1,) + (1,) * (z_t.ndim - 1)
        return to_noise(
            prediction[:, : z_t.shape[1]].float(),
            z_t,
            self._alpha[timesteps].reshape(shape),
            self._sigma[timesteps].reshape(shape),
            self._prediction_type,
        )
