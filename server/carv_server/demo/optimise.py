"""Score distillation of a field at a budget of measured compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from carv_client import Conditioning, TeacherClient
from carv_client.torch import score_distillation_with_estimate
from carv_server.demo.cameras import View, random_views
from carv_server.demo.compute import ComputeMeter
from carv_server.demo.convention import Convention
from carv_server.demo.encoder import ImageEncoder
from carv_server.demo.field import VoxelField
from carv_server.demo.scene import render_view
from carv_server.demo.settings import Method, Settings

__all__ = ["Look", "Run", "Studio", "optimise"]


_HISTORY_CHARACTERS = 64  # the default limit of the server


@dataclass(frozen=True)
class Studio:
    """What every run shares: the server, its teacher's convention and encoder, the prompt."""

    client: TeacherClient
    convention: Convention
    encoder: ImageEncoder
    prompt: str
    conditionings: dict[str, Conditioning]
    """By view word."""

    @staticmethod
    def open(
        client: TeacherClient, convention: Convention, encoder: ImageEncoder, prompt: str
    ) -> Studio:
        """Asks the server for the conditionings of ``prompt`` in every view."""
        return Studio(
            client, convention, encoder, prompt, view_conditionings(client, convention, prompt)
        )

    def conditioning(self, view: View) -> Conditioning:
        return self.conditionings[self.convention.view_word(view.azimuth, view.elevation)]

    @torch.no_grad()
    def latents(self, field: VoxelField, views: Sequence[View], samples: int) -> Tensor:
        """Latents ``[V, *event]`` of the field seen from ``views``, without a gradient."""
        renders = [render_view(field, view, self.convention, samples=samples) for view in views]
        return self.encoder(torch.stack([render.image for render in renders]))


def view_conditionings(
    client: TeacherClient, convention: Convention, prompt: str
) -> dict[str, Conditioning]:
    """Conditionings of ``prompt`` by view word."""
    words = convention.views
    made = client.create_conditioning([f"{prompt}, {word} view" for word in words])
    return dict(zip(words, made, strict=True))


@dataclass(frozen=True)
class Look:
    """The held-out views at one moment of a run."""

    compute: float
    """Seconds spent until then."""
    iterations: int
    latents: Tensor
    """``[V, *event]``."""


@dataclass(frozen=True)
class Run:
    """What came of one optimisation."""

    method: Method
    seed: int
    field: VoxelField
    meter: ComputeMeter
    looks: list[Look]
    halfway: VoxelField
    """The field when half the budget was spent."""


def optimise(
    studio: Studio,
    method: Method,
    seed: int,
    settings: Settings,
    held_out: Sequence[View],
    progress: Callable[[float], None],
    meter: ComputeMeter | None = None,
) -> Run:
    """Optimises a field until its measured compute is within half an iteration of the budget.

    One iteration renders one random view, encodes it, asks the server for the gradient at its
    latents (K draws) and takes one Adam step. The same ``seed`` gives both methods the same
    cameras and the same first field; the number of iterations depends on this machine's speed.
    ``progress`` is called with the compute seconds of each iteration. Looks at the held-out
    views are not charged; the last one is at the end, wherever that falls. ``meter`` replaces the
    one by this machine's clock; its budget is that of ``settings``.
    """
    rng = np.random.default_rng(seed)
    jitter = torch.Generator().manual_seed(seed)
    views = random_views(rng, studio.convention.elevation, studio.convention.distances)
    field = VoxelField(settings.field)
    optimiser = torch.optim.Adam(field.parameters(), lr=settings.rate(0.0), betas=settings.betas)
    meter = meter or ComputeMeter(settings.budget)
    history = f"{method.name}, seed {seed}: {studio.prompt}"[:_HISTORY_CHARACTERS]
    due = settings.looks()
    looks: list[Look] = []
    halfway = field

    def look() -> None:
        latents = studio.latents(field, held_out, settings.samples)
        looks.append(Look(meter.spent, meter.iterations, latents))

    while True:
        while due and meter.spent >= due[0] * settings.budget:
            due.pop(0)
            look()
        if halfway is field and meter.fraction >= 0.5:
            halfway = _copy(field)
        if meter.exhausted:
            for _ in due:
                look()
            return Run(method, seed, field, meter, looks, halfway)
        before = meter.spent
        with meter.iteration():
            view = next(views)
            render = render_view(
                field, view, studio.convention, samples=settings.samples, generator=jitter
            )
            latents = studio.encoder(render.image[None])
            start = time.perf_counter()
            request_seed = (seed << 32) + meter.iterations
            options = method.options(settings, meter.fraction, request_seed, history)
            loss, estimate = score_distillation_with_estimate(
                latents, studio.conditioning(view), client=studio.client, **options
            )
            meter.request(time.perf_counter() - start, estimate.compute_seconds)
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(meter.fraction)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        progress(meter.spent - before)


def _copy(field: VoxelField) -> VoxelField:
    other = VoxelField(field.config)
    other.load_state_dict(field.state_dict())
    return other
