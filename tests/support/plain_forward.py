"""The forward as its formula reads, work by work and draw by draw: what the fast one must equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from carv.noise import draw_noise
from carv_server.replicas.protocol import Work
from carv_server.teachers.protocol import Teacher

__all__ = ["PlainResult", "plain_forward"]


@dataclass(frozen=True)
class PlainResult:
    """Attributes:
    values: float64 [n, D], each draw's integrand.
    residuals: float64 [n, 3], ||h||^2, <h, eps>, ||eps||^2.
    predictions: float32 [n, D], of the first branch.
    """

    values: np.ndarray
    residuals: np.ndarray
    predictions: np.ndarray


@torch.inference_mode()
def plain_forward(teacher: Teacher, work: Work) -> PlainResult:
    """(p/q)(t) w(t) ( sum_j a_j(t) eps_hat(alpha x + sigma eps, t, c_j) + (d(t) + c(t)) eps )"""
    schedule, shape = teacher.description.schedule, teacher.description.event_shape
    values, residuals, predictions = [], [], []
    for i, (render, t) in enumerate(
        zip(work.renders.tolist(), work.timesteps.tolist(), strict=True)
    ):
        eps = float(work.signs[i]) * draw_noise(
            work.seed, render, int(work.noise_indices[i]), shape
        )

        def noisy(latents: np.ndarray, render: int = render, t: int = t, eps=eps) -> torch.Tensor:
            x = latents[render : render + 1]
            if work.latents_are_noisy:
                return torch.from_numpy(x)
            alpha, sigma = np.float32(schedule.alpha[t]), np.float32(schedule.sigma[t])
            return torch.from_numpy(alpha * x + sigma * eps[None])

        h = float(work.noise_coefficients[i]) * eps.astype(np.float64)
        for j, branch in enumerate(work.branches):
            latents = work.latents
            if branch.use_reference and work.reference_latents is not None:
                latents = work.reference_latents
            row = branch.conditioning(render).tensors
            predicted = teacher.predict_noise(
                noisy(latents), torch.tensor([t]), {k: v[None] for k, v in row.items()}
            )[0].numpy()
            if j == 0:
                predictions.append(predicted.reshape(-1))
            h = h + float(work.branch_coefficients[j, i]) * predicted
        h, eps = h.reshape(-1), eps.reshape(-1).astype(np.float64)
        residuals.append([h @ h, h @ eps, eps @ eps])
        values.append(float(work.scales[i]) * (h + float(work.control_coefficients[i]) * eps))
    return PlainResult(np.stack(values), np.array(residuals), np.stack(predictions))
