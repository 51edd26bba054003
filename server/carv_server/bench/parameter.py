"""Fields under cameras: gradients at the latents of views, and their image in parameter space.

The parameter gradient of one request is (1/R) sum_r J_r^T g_r over its renders r, J_r the
Jacobian of renderer and encoder at view r. Only inner products matter to a variance, so with the
Gram matrix J J^T = L L^T of all views' stacked Jacobians, the vector L^T g stands for J^T g,
isometrically: 256 backward passes for each view serve every replicate of every method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from carv_server.bench.states import FieldStage, Studio
from carv_server.demo.cameras import View, random_views

__all__ = ["Views", "draw_views"]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Views:
    """A field seen by C cameras.

    Attributes:
        latents: float32 [C, D].
        prompts: of each view.
        factors: float64 [C, D, P]: a gradient g at view c is g @ factors[c] in coordinates of
            parameter space.
        upstream_seconds: render, encode and differentiate one view.
    """

    stage: FieldStage
    latents: Float32Array
    prompts: list[str]
    factors: Float64Array
    upstream_seconds: float

    @property
    def count(self) -> int:
        return len(self.latents)


def draw_views(
    studio: Studio, stage: FieldStage, count: int, seed: int, progress: Callable[[float], None]
) -> Views:
    """Views of uniform azimuth, elevation and distance. Costs D backward passes each;
    ``progress`` is called with the seconds of each view."""
    source = random_views(
        np.random.default_rng(seed), studio.convention.elevation, studio.convention.distances
    )
    views = [next(source) for _ in range(count)]
    latents: list[Float32Array] = []
    rows: list[torch.Tensor] = []
    upstream: list[float] = []
    for view in views:
        started = time.perf_counter()
        jacobian, flat, seconds = _jacobian(studio, stage, view)
        rows.append(jacobian)
        latents.append(flat)
        upstream.append(seconds)
        progress(time.perf_counter() - started)
    return Views(
        stage,
        np.stack(latents),
        [studio.prompt(stage.prompt, view) for view in views],
        _factors(rows),
        float(np.median(upstream)),
    )


def _jacobian(
    studio: Studio, stage: FieldStage, view: View
) -> tuple[torch.Tensor, Float32Array, float]:
    """J float32 [D, parameters], the latents [D], and seconds of one forward and backward."""
    parameters = list(stage.field.parameters())
    started = time.perf_counter()
    latents = studio.render(stage.field, view)
    forward = time.perf_counter() - started
    flat = latents.reshape(-1)
    rows: list[torch.Tensor] = []
    backward: list[float] = []
    for i in range(len(flat)):
        started = time.perf_counter()
        parts = torch.autograd.grad(flat[i], parameters, retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
        backward.append(time.perf_counter() - started)
    return (
        torch.stack(rows),
        flat.detach().numpy().copy(),
        forward + float(np.median(backward)),
    )


def _factors(jacobians: Sequence[torch.Tensor]) -> Float64Array:
    """L by views, float64 [C, D, C D]; L L^T is the Gram matrix of all rows."""
    count, size = len(jacobians), jacobians[0].shape[0]
    gram = torch.zeros(count, size, count, size, dtype=torch.float64)
    for i in range(count):
        for j in range(i + 1):
            block = (jacobians[i] @ jacobians[j].T).double()
            gram[i, :, j] = block
            gram[j, :, i] = block.T
    values, vectors = np.linalg.eigh(gram.numpy().reshape(count * size, count * size))
    # Rounding leaves eigenvalues just below zero; those directions move no parameter.
    keep = values > values[-1] * 1e-9
    factor: Float64Array = vectors[:, keep] * np.sqrt(values[keep])
    return factor.reshape(count, size, -1)
