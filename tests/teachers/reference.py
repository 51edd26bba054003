"""The estimand's formula, evaluated one draw at a time with plain diffusers and numpy.

Nothing here imports the server: modules load with ``from_pretrained``, z_t comes from diffusers'
own scheduler, and the conversions and weightings are written out again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from carv.noise import draw_noise
from carv_client import Estimate

__all__ = [
    "WEIGHTINGS",
    "Draws",
    "ReferenceTeacher",
    "Term",
    "assert_parity",
    "draws_of",
    "gradient",
]

TOLERANCE = 1e-5  # relative, by norm, in float32

Array = npt.NDArray[Any]
Condition = str | int | None
"""A prompt, a class id, or nothing at all."""

WEIGHTINGS: dict[str, Callable[[Array], Array]] = {
    "sds": lambda abar: 1 - abar,
    "uniform": np.ones_like,
    "fantasia3d": lambda abar: np.sqrt(abar) * (1 - abar),
    "dreamfusion_sqrt": lambda abar: 1 - np.sqrt(abar),
    "x0": lambda abar: np.sqrt(1 - abar) / np.sqrt(abar),
    "score": lambda abar: 1 / np.sqrt(1 - abar),
}
"""w by name, of abar on a variance-preserving schedule."""


@dataclass(frozen=True)
class Draws:
    """Every array [R, K]."""

    timesteps: Array
    noise_indices: Array
    signs: Array
    importance_weights: Array


def draws_of(estimate: Estimate) -> Draws:
    """The draws behind an estimate that was asked for with ``return_draws``."""
    assert estimate.draws is not None
    return Draws(**estimate.draws.arguments)


@dataclass(frozen=True)
class Term:
    """a * eps_hat(z, t, c): one condition for each render; at the reference latents or not."""

    coefficient: float | Array
    conditions: Sequence[Condition]
    use_reference: bool = False


class ReferenceTeacher:
    """A folder loaded by diffusers and transformers alone."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        scheduler_name = index["scheduler"][1]
        if scheduler_name == "FlowMatchEulerDiscreteScheduler":
            self.scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(
                folder / "scheduler"
            )
        else:
            self.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        self._text: Any = None
        if index["unet"][1] == "UNet2DConditionModel":
            self._unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
            self._text = CLIPTextModel.from_pretrained(folder / "text_encoder")
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        else:
            self._unet = UNet2DModel.from_pretrained(folder / "unet")

    @property
    def is_flow(self) -> bool:
        return isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)

    @property
    def alpha_bar(self) -> Array:
        """alpha^2 / (alpha^2 + sigma^2), float64 [N]."""
        if self.is_flow:
            sigma = self.scheduler.sigmas.flip(0).double().numpy()
            return (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)
        return self.scheduler.alphas_cumprod.double().numpy()

    @staticmethod
    def noise(seed: int, render: int, index: int, event_shape: Sequence[int]) -> Array:
        return draw_noise(seed, render, index, event_shape)

    def noisy(self, x: Array, noise: Array, timestep: int) -> Array:
        """z_t by the scheduler, float32."""
        clean, eps = torch.from_numpy(x)[None], torch.from_numpy(noise)[None]
        if self.is_flow:
            return self.scheduler.scale_noise(clean, self._told(timestep), eps)[0].numpy()
        return self.scheduler.add_noise(clean, eps, self._told(timestep))[0].numpy()

    @torch.no_grad()
    def predict_noise(self, x: Array, noise: Array, timestep: int, condition: Condition) -> Array:
        """eps_hat at z_t = add_noise(x, noise, t), for one row, float64."""
        z = torch.from_numpy(self.noisy(x, noise, timestep))[None]
        out = self._forward(z, self._told(timestep), condition)[:, : len(x)]
        return self._to_noise(out[0].double().numpy(), z[0].double().numpy(), timestep)

    def _told(self, timestep: int) -> torch.Tensor:
        """What the network is told at a grid index, [1]."""
        if self.is_flow:
            return self.scheduler.timesteps.flip(0)[timestep][None]
        return torch.tensor([timestep])

    def _forward(self, z: torch.Tensor, told: torch.Tensor, condition: Condition) -> torch.Tensor:
        match condition:
            case str():
                ids = self._tokenizer(
                    condition,
                    padding="max_length",
                    max_length=self._tokenizer.model_max_length,
                    return_tensors="pt",
                ).input_ids
                embedding = self._text(ids).last_hidden_state
                return self._unet(z, told, encoder_hidden_states=embedding).sample
            case int():
                return self._unet(z, told, class_labels=torch.tensor([condition])).sample
            case None:
                return self._unet(z, told).sample

    def _to_noise(self, out: Array, z: Array, timestep: int) -> Array:
        if self.is_flow:
            # u = eps - x and z = (1 - s) x + s eps, hence eps = z + (1 - s) u.
            return z + (1 - float(self.scheduler.sigmas.flip(0)[timestep])) * out
        abar = self.alpha_bar[timestep]
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return out
            case "v_prediction":
                return np.sqrt(abar) * out + np.sqrt(1 - abar) * z
            case "sample":
                return (z - np.sqrt(abar) * out) / np.sqrt(1 - abar)
            case other:
                raise AssertionError(other)


def gradient(
    teacher: ReferenceTeacher,
    latents: Array,
    terms: Sequence[Term],
    draws: Draws,
    *,
    seed: int,
    weighting: Array,
    noise_coefficient: float | Array = -1.0,
    reference_latents: Array | None = None,
) -> Array:
    """(1/K) sum_k (p/q) w(t) (sum_j a_j(t) eps_hat_j + d(t) eps), float64 [R, *event_shape].

    Args:
        weighting: w, [N].
        noise_coefficient: d, a number or [N].
    """
    renders, count = draws.timesteps.shape
    result = np.zeros(latents.shape)
    for r in range(renders):
        for k in range(count):
            t = int(draws.timesteps[r, k])
            noise = draw_noise(seed, r, int(draws.noise_indices[r, k]), latents.shape[1:])
            noise = noise * np.float32(draws.signs[r, k])
            value = _at(noise_coefficient, t) * noise.astype(np.float64)
            for term in terms:
                source = reference_latents if term.use_reference else latents
                assert source is not None
                value += _at(term.coefficient, t) * teacher.predict_noise(
                    source[r], noise, t, term.conditions[r]
                )
            result[r] += float(draws.importance_weights[r, k]) * weighting[t] * value
    return result / count


def _at(coefficient: float | Array, timestep: int) -> float:
    values = np.asarray(coefficient)
    return float(values if values.ndim == 0 else values[timestep])


def assert_parity(actual: Array, expected: Array) -> None:
    """Each row within 1e-5 of the expected row, relative to its norm."""
    assert actual.shape == expected.shape and actual.dtype == np.float32
    for row, wanted in zip(actual.astype(np.float64), expected, strict=True):
        error = np.linalg.norm(row - wanted) / np.linalg.norm(wanted)
        assert error < TOLERANCE, f"relative error {error:.2e}"
