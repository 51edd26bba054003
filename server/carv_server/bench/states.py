"""States of x that the bench draws itself: fields under optimisation, and the teacher's samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from carv_server.bench.laboratory import Laboratory
from carv_server.bench.methods import guided_objective
from carv_server.bench.serving import LiveServer
from carv_server.demo.cameras import View, random_views
from carv_server.demo.convention import Convention
from carv_server.demo.encoder import ImageEncoder
from carv_server.demo.field import FieldConfig, VoxelField
from carv_server.demo.scene import render_view
from carv_server.demo.settings import Settings
from carv_server.sampling.plan import Sampling

__all__ = [
    "KINDS",
    "STAGES",
    "FieldStage",
    "State",
    "Studio",
    "draw_states",
    "optimise_field",
    "sample_state",
]

Float32Array = npt.NDArray[np.float32]

STAGES = ("early", "middle", "late")
KINDS = (*STAGES, "blurred", "half noise", "sample")

_GUIDANCE = 7.5
_DRAWS = 4
_SAMPLER_STEPS = 30
_SAMPLER_GUIDANCE = 3.0


@dataclass(frozen=True)
class Studio:
    """The upstream half: renderer conventions and the image encoder."""

    convention: Convention
    encoder: ImageEncoder
    samples: int = Settings.samples

    def render(self, field: VoxelField, view: View) -> torch.Tensor:
        """Latents [1, *event] of a view; differentiable."""
        render = render_view(field, view, self.convention, samples=self.samples)
        return self.encoder(render.image[None])

    def prompt(self, prompt: str, view: View) -> str:
        return self.convention.view_prompt(prompt, view.azimuth, view.elevation)


@dataclass(frozen=True)
class FieldStage:
    """A field at one stage of an optimisation."""

    prompt: str
    stage: str
    iterations: int
    field: VoxelField


@dataclass(frozen=True)
class State:
    """One x with its prompt. ``latents`` float32 [D]."""

    prompt: str
    kind: str
    conditioning: str
    latents: Float32Array

    @property
    def name(self) -> str:
        return f"{self.prompt}, {self.kind}"


def optimise_field(
    laboratory: Laboratory,
    server: LiveServer,
    studio: Studio,
    prompt: str,
    stops: Sequence[int],
    seed: int,
    progress: Callable[[], None],
) -> list[FieldStage]:
    """Score distillation with the server's own gradients; copies of the field after ``stops``
    iterations, one for each of STAGES."""
    rng = np.random.default_rng(seed)
    views = random_views(rng, studio.convention.elevation, studio.convention.distances)
    settings = Settings(budget=1.0)
    field = VoxelField(FieldConfig())
    optimiser = torch.optim.Adam(field.parameters(), lr=settings.rate(0.0), betas=settings.betas)
    objective = guided_objective(laboratory.schedule, _GUIDANCE)
    found: list[FieldStage] = []
    for iteration in range(stops[-1]):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(iteration / stops[-1])
        view = next(views)
        latents = studio.render(field, view)
        estimate = server.estimate(
            latents.detach().numpy(),
            studio.prompt(prompt, view),
            objective,
            Sampling(),
            _DRAWS,
            (seed << 20) + iteration,
            f"optimise {prompt}",
        )
        optimiser.zero_grad()
        latents.backward(torch.from_numpy(estimate.gradient))
        optimiser.step()
        progress()
        if iteration + 1 in stops:
            copy = VoxelField(field.config)
            copy.load_state_dict(field.state_dict())
            found.append(FieldStage(prompt, STAGES[len(found)], iteration + 1, copy))
    return found


@torch.no_grad()
def draw_states(
    laboratory: Laboratory, studio: Studio, stages: Sequence[FieldStage], seed: int
) -> list[State]:
    """Of one prompt, one state of each of KINDS.

    The first three are encoded renders of the field, each from a view of its own; the late one
    is also taken blurred (3 x 3 mean over latents) and half noise, (x + n) / sqrt 2; the last is
    a sample of the teacher for the front view, which lies on its manifold.
    """
    rng = np.random.default_rng(seed)
    views = random_views(rng, studio.convention.elevation, studio.convention.distances)
    found: list[State] = []
    for each in stages:
        view = next(views)
        latents = studio.render(each.field, view)
        conditioning = studio.prompt(each.prompt, view)
        found.append(State(each.prompt, each.stage, conditioning, _flat(latents)))
    late = found[-1]
    x = torch.from_numpy(late.latents).reshape(1, *laboratory.event_shape)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    blurred = torch.nn.functional.avg_pool2d(padded, 3, 1)
    noise = torch.from_numpy(rng.normal(size=x.shape).astype(np.float32))
    found += [
        State(late.prompt, "blurred", late.conditioning, _flat(blurred)),
        State(late.prompt, "half noise", late.conditioning, _flat((x + noise) / 2**0.5)),
        sample_state(laboratory, late.prompt, rng),
    ]
    return found


@torch.no_grad()
def sample_state(laboratory: Laboratory, prompt: str, rng: np.random.Generator) -> State:
    """A sample of the teacher by DDIM (Song et al. 2021, eta = 0) under guidance."""
    teacher, schedule = laboratory.teacher, laboratory.schedule
    conditioning = f"{prompt}, front view"
    rows = [laboratory.conditioning(c).tensors for c in (conditioning, None)]
    tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    z = torch.from_numpy(rng.normal(size=(1, *laboratory.event_shape)).astype(np.float32))
    grid = np.linspace(len(schedule) - 1, 0, _SAMPLER_STEPS + 1).round().astype(int)
    x = z
    for t, after in pairwise(grid.tolist()):
        both = teacher.predict_noise(torch.cat([z, z]), torch.full((2,), int(t)), tensors)
        noise = both[1:] + _SAMPLER_GUIDANCE * (both[:1] - both[1:])
        x = (z - float(schedule.sigma[t]) * noise) / float(schedule.alpha[t])
        # At the noisiest steps alpha is small, and so is what is known of x.
        x = x.clamp(-4.0, 4.0)
        noise = (z - float(schedule.alpha[t]) * x) / float(schedule.sigma[t])
        z = float(schedule.alpha[after]) * x + float(schedule.sigma[after]) * noise
    laboratory.spent(2 * _SAMPLER_STEPS)
    return State(prompt, "sample", conditioning, _flat(x))


def _flat(latents: torch.Tensor) -> Float32Array:
    return latents.detach().numpy().reshape(-1)
