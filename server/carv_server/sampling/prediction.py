"""Every parameterisation becomes noise units once, at the teacher."""

from __future__ import annotations

from enum import Enum

import torch

__all__ = ["PredictionType", "to_noise"]


class PredictionType(Enum):
    EPSILON = "epsilon"
    V = "v_prediction"
    SAMPLE = "sample"
    FLOW = "flow"


def to_noise(
    prediction: torch.Tensor,
    z_t: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    prediction_type: PredictionType,
) -> torch.Tensor:
    """Network output to eps_hat.

    Args:
        prediction, z_t: [n, *event_shape].
        alpha, sigma: broadcastable to them.

    With z = alpha x + sigma eps: v = alpha eps - sigma x (Salimans & Ho 2022) gives
    eps = alpha v + sigma z where alpha^2 + sigma^2 = 1; a clean sample x gives
    (z - alpha x) / sigma; flow velocity u = eps - x gives z + alpha u where alpha = 1 - sigma.
    """
    match prediction_type:
        case PredictionType.EPSILON:
            return prediction
        case PredictionType.V:
            return alpha * prediction + sigma * z_t
        case PredictionType.SAMPLE:
            return (z_t - alpha * prediction) / sigma
        case PredictionType.FLOW:
            return z_t + alpha * prediction
