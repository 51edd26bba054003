"""How much of the variance between views a way of choosing them leaves.

A gradient from R renders of independent views has the variance (B + W)/R. Views that spread out
leave W and lower B. What they leave is measured without the teacher's noise from a bank of views
on a grid of azimuths and elevations: with p_i and p'_i two independent estimates of the parameter
gradient g_i at view i,

    G_ij = <(p_i + p'_i)/2, (p_j + p'_j)/2>  for i ≠ j,    G_ii = <p_i, p'_i>

are unbiased for <g_i, g_j>, and for any law of R views i_1 .. i_R on the grid

    tr Cov of the mean = E (1/R²) Σ_rs G_{i_r i_s} − (1/N²) Σ_ij G_ij

where every single view is uniform over the N of the grid. The bank costs N requests, made once;
every sampler is then judged on it by arithmetic. All are judged on the same estimates, whose
noise cancels in their ratios for the most part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from carv_client.cameras import ViewRange, ViewSampler, view_points
from carv_server.demo.field import VoxelField
from carv_server.demo.optimise import Studio
from carv_server.demo.scene import render_view
from carv_server.demo.settings import CARV, Settings

__all__ = ["ViewBank", "between_variance", "measure_bank"]


@dataclass(frozen=True)
class ViewBank:
    """Inner products of the exact parameter gradients of views on a grid."""

    azimuths: int
    """Steps around; even, so that opposite views are on the grid."""
    elevations: int
    """Steps between the lowest and the highest elevation."""
    gram: npt.NDArray[np.float64]
    """[N, N], unbiased for <g_i, g_j>; N = azimuths · elevations, azimuths innermost."""

    def index(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The grid's view at points [..., 3] of the unit cube (azimuth, elevation, distance)."""
        azimuth = (points[..., 0] * self.azimuths).astype(np.int64)
        elevation = (points[..., 1] * self.elevations).astype(np.int64)
        return elevation * self.azimuths + azimuth

    def between_variance(
        self, sampler: ViewSampler, renders: int, repeats: int = 4000, seed: int = 0
    ) -> tuple[float, float]:
        """tr Cov over views of the mean exact gradient of R views; and its standard error, of the
        ``repeats`` sets of views alone, not of the bank's own noise.

        B/R for "independent", where it is exact. Points within a cell of the grid count as its
        middle: strata much finer than the cells cannot show.
        """
        overall = float(self.gram.mean())
        if sampler == "independent":
            return (float(np.diag(self.gram).mean()) - overall) / renders, 0.0
        rng = np.random.default_rng(seed)
        chosen = self.index(np.stack([view_points(sampler, renders, rng) for _ in range(repeats)]))
        values = self.gram[chosen[:, :, np.newaxis], chosen[:, np.newaxis, :]].mean(axis=(1, 2))
        return float(values.mean()) - overall, float(values.std(ddof=1)) / math.sqrt(repeats)


def measure_bank(
    studio: Studio,
    field: VoxelField,
    settings: Settings,
    *,
    azimuths: int = 18,
    elevations: int = 4,
    draws: int = 16,
    fraction: float = 0.5,
    seed: int = 5_000_011,
    progress: Callable[[float], None] = lambda part: None,
) -> ViewBank:
    """The gradient of every view on the grid from ``draws`` draws in two halves, taken to the
    field's parameters: N requests of ``draws`` draws, and 2·N backward passes.

    Args:
        settings: guidance, samples along a ray, and the timesteps at ``fraction`` of a run.
        seed: of the first view's draws; the others' follow.
        progress: called with the fraction of the work done since its last call.
    """
    convention = studio.convention
    region = ViewRange(convention.elevation, (convention.distance, convention.distance))
    parameters = list(field.parameters())
    pulled: list[list[torch.Tensor]] = []
    count = azimuths * elevations
    method = CARV.with_draws(draws)
    for index in range(count):
        row, column = divmod(index, azimuths)
        view = region.view((column + 0.5) / azimuths, (row + 0.5) / elevations, 0.5)
        image = render_view(field, view, convention, samples=settings.samples).image
        latents = studio.encoder(image[None])
        options = method.options(settings, fraction, seed + index)
        options["return_half_estimates"] = True
        estimate = studio.client.estimate_gradient(
            latents.detach().numpy(), studio.conditioning(view), **options
        )
        assert estimate.half_estimates is not None
        halves: list[torch.Tensor] = []
        for half in torch.from_numpy(estimate.half_estimates):
            parts = torch.autograd.grad(latents, parameters, half, retain_graph=True)
            halves.append(torch.cat([part.flatten() for part in parts]))
        pulled.append(halves)
        progress(1 / count)
    first, second = (torch.stack([halves[side] for halves in pulled]) for side in range(2))
    mean = (first + second) / 2
    gram = (mean @ mean.T).double().numpy()
    np.fill_diagonal(gram, (first * second).sum(dim=1).double().numpy())
    return ViewBank(azimuths, elevations, gram)


def between_variance(
    studio: Studio,
    field: VoxelField,
    sampler: ViewSampler,
    renders: int,
    repeats: int = 4000,
    *,
    bank: ViewBank | None = None,
) -> float:
    """``ViewBank.between_variance``, of a bank measured here unless one is given."""
    bank = bank or measure_bank(studio, field, Settings(budget=1.0))
    return bank.between_variance(sampler, renders, repeats)[0]
