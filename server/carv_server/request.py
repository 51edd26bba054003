"""Requests as the server thinks of them: checked, in numpy and plain types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carv_server.replicas.protocol import Branch
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import DrawPlan, Sampling

__all__ = [
    "SMALL_BYTES",
    "DrawSpec",
    "EstimateRequest",
    "PredictRequest",
    "ProfileRequest",
    "RefineRequest",
    "RequestLimits",
]

Float32Array = npt.NDArray[np.float32]

SMALL_BYTES = 2 << 20
"""Requests up to here are parsed and checked on the event loop, which takes about a millisecond;
going to another thread and back costs a tenth of one whatever the size."""


@dataclass(frozen=True)
class RequestLimits:
    """Bounds on one request.

    Attributes:
        max_draws: K.
        max_renders: R.
        max_branches: guidance branches.
        max_evaluations: R * K * branches.
        max_prompts: prompts or class ids in one CreateConditioning.
        max_prompt_characters: length of one prompt.
        max_history_characters: length of a history's label.
        max_stream_requests: requests in flight on one StreamGradients.
    """

    max_draws: int = 1024
    max_renders: int = 256
    max_branches: int = 8
    max_evaluations: int = 16384
    max_prompts: int = 256
    max_prompt_characters: int = 2000
    max_history_characters: int = 64
    max_stream_requests: int = 64


@dataclass(frozen=True)
class DrawSpec:
    """K draws per render, placed by the server.

    Attributes:
        history: label of the run whose past draws are learned from.
        half_estimates: two independent halves of K / 2 draws; K is even.
    """

    sampling: Sampling
    draws: int
    history: str = ""
    half_estimates: bool = False


@dataclass(frozen=True)
class EstimateRequest:
    """A checked EstimateGradient.

    Attributes:
        latents, reference_latents: float32 [R, *event_shape].
        draws: how to draw, or the client's own draws.
        seed: chosen by the server where the client gave none.
    """

    latents: Float32Array
    reference_latents: Float32Array | None
    branches: Sequence[Branch]
    objective: ObjectiveTables
    draws: DrawSpec | DrawPlan
    seed: int
    return_draws: bool

    @property
    def evaluations(self) -> int:
        """Of all draws and branches."""
        draws = (
            self.draws.draws * len(self.latents)
            if isinstance(self.draws, DrawSpec)
            else (self.draws.timesteps.size)
        )
        return draws * len(self.branches)


@dataclass(frozen=True)
class RefineRequest:
    """A checked RefineGradient.

    Attributes:
        latents, reference_latents: float32 [R, *event_shape].
        sampling: how to draw; ``history`` is the label of its past.
        target: relative standard error to stop at; 0: none.
        max_draws: most draws of one render, at least 1.
        max_seconds: time budget; None: the call's deadline alone.
    """

    latents: Float32Array
    reference_latents: Float32Array | None
    branches: Sequence[Branch]
    objective: ObjectiveTables
    sampling: Sampling
    history: str
    seed: int
    target: float
    max_draws: int
    max_seconds: float | None


@dataclass(frozen=True)
class PredictRequest:
    """A checked PredictNoise.

    Attributes:
        latents: float32 [R, *event_shape]; z_t itself where ``noisy``.
    """

    latents: Float32Array
    noisy: bool
    branch: Branch
    plan: DrawPlan
    seed: int


@dataclass(frozen=True)
class ProfileRequest:
    """A checked ProfileTeacher.

    Attributes:
        latents, reference_latents: float32 [R, *event_shape].
        bins: most bins over log-SNR.
        draws_per_bin: of each render, even.
        history: label of the history that is looked at, and added to where ``warm``.
    """

    latents: Float32Array
    reference_latents: Float32Array | None
    branches: Sequence[Branch]
    objective: ObjectiveTables
    bins: int
    draws_per_bin: int
    seed: int
    history: str
    warm: bool
