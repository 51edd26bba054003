"""A teacher with a known law, and an encoder that is a matrix: what closed forms need."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from carv_client import Conditioning, Estimate, NoisePrediction, draw_noise
from carv_server.demo.convention import Convention
from carv_server.demo.field import FieldConfig
from carv_server.demo.optimise import Studio
from carv_server.demo.settings import Settings

__all__ = [
    "EVENT_SHAPE",
    "FakeClient",
    "PoolingEncoder",
    "jacobian",
    "small_settings",
    "small_studio",
]

EVENT_SHAPE = (3, 2, 2)
SECONDS_PER_DRAW = 0.05


class PoolingEncoder(nn.Module):
    """Latents are the mean colours of the image's quadrants: linear in the image."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2), 2)


@dataclass
class FakeClient:
    """Stands in for ``TeacherClient``.

    The gradient of K draws is ``pull * latents`` plus Gaussian noise of variance
    ``scale**2 / K`` per component, by seed. The predicted noise is the drawn one plus
    ``offsets[prompt]``.
    """

    pull: float = 1.0
    scale: float = 1.0
    offsets: dict[str, float] = field(default_factory=dict[str, float])
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    predictions: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def get_teacher(self) -> Any:
        @dataclass
        class Teacher:
            event_shape: tuple[int, ...] = EVENT_SHAPE
            timesteps: int = 1001

        return Teacher()

    def create_conditioning(self, prompts: list[str]) -> list[Conditioning]:
        return cast("list[Conditioning]", list(prompts))

    def estimate_gradient(
        self, latents: npt.NDArray[np.float32], conditioning: str, **options: Any
    ) -> Estimate:
        self.requests.append({"conditioning": conditioning, **options})
        rng = np.random.default_rng(options["seed"])
        deviation, halves = self.scale / options["draws"] ** 0.5, None
        noise = rng.normal(scale=deviation, size=latents.shape)
        if options.get("return_half_estimates"):
            spread = rng.normal(scale=deviation, size=latents.shape)
            halves = np.stack([self.pull * latents + noise + side * spread for side in (1, -1)])
            halves = halves.astype(np.float32)
        return Estimate(
            gradient=(self.pull * latents + noise).astype(np.float32),
            noise_variance=None,
            variance_estimator="unavailable",
            effective_sample_size=np.ones(len(latents), dtype=np.float32),
            seed=options["seed"],
            sampler="iid",
            proposal="prior",
            coupling="iid",
            draws_spent=options["draws"],
            evaluations_spent=2 * options["draws"],
            teacher_digest="",
            queue_seconds=0.0,
            compute_seconds=SECONDS_PER_DRAW * options["draws"],
            total_seconds=0.0,
            draws=None,
            half_estimates=halves,
        )

    def predict_noise(
        self,
        latents: npt.NDArray[np.float32],
        conditioning: list[str],
        *,
        timesteps: npt.NDArray[np.int64],
        seed: int,
    ) -> NoisePrediction:
        self.predictions.append({"prompts": conditioning, "timesteps": timesteps, "seed": seed})
        noise = np.array(
            [
                [draw_noise(seed, row, k, latents.shape[1:]) + self.offsets.get(prompt, 0.0)
                 for k in range(len(timesteps))]
                for row, prompt in enumerate(conditioning)
            ]
        )  # fmt: skip
        draws = noise.shape[0] * noise.shape[1]
        return NoisePrediction(noise.astype(np.float32), seed, draws, draws, "", 0, 0, 0)


def small_studio(convention: Convention, client: FakeClient) -> Studio:
    """12-pixel images and the pooling encoder around ``client``."""
    return Studio.open(
        cast(Any, client),
        replace(convention, image_size=12),
        cast(Any, PoolingEncoder()),
        "a red torus",
    )


def small_settings(budget: float, **changes: Any) -> Settings:
    """One coarse grid, eight points along a ray."""
    config = FieldConfig(resolutions=(3,), max_density=10.0)
    return Settings(budget=budget, samples=8, checkpoints=5, field=config, **changes)


def jacobian(latents: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """d latents / d parameters, ``[latents, parameters]``, one row after the other."""
    rows: list[Tensor] = []
    for value in latents.flatten():
        parts = torch.autograd.grad(value, parameters, retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)
