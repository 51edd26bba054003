"""The values that go into a request and come out of a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from carv_client._errors import invalid

__all__ = [
    "Branch",
    "Conditioning",
    "ConditioningTensor",
    "Conditionings",
    "ControlVariate",
    "Coupling",
    "DrawArguments",
    "DrawTable",
    "Draws",
    "Estimate",
    "Guidance",
    "Limits",
    "NamedWeighting",
    "NoisePrediction",
    "Proposal",
    "RefinedEstimate",
    "Sampler",
    "Teacher",
    "WireDtype",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Draws = int | Literal["auto"]
"""K, or what a planner chooses."""
Sampler = Literal["iid", "stratified", "global", "nested"]
"""Where the timesteps of the draws are placed."""
Proposal = Literal["prior", "weight", "adaptive"]
"""The law that timesteps are drawn from."""
Coupling = Literal["iid", "antithetic"]
"""How the noises of a render's draws hang together."""
ControlVariate = Literal["none", "noise"]
"""The term of mean zero that is added to every draw."""
Guidance = Literal["standard", "text_anchored"]
"""Convention of the guidance scale."""
NamedWeighting = Literal["sds", "uniform", "fantasia3d", "dreamfusion_sqrt", "x0", "score"]
"""w(t) by name."""
WireDtype = Literal["float32", "float16", "bfloat16"]
"""What latents travel as."""


@dataclass(frozen=True)
class Conditioning:
    """A conditioning that the server holds for us, and what it was made of.

    A value object: reuse it for any number of calls. When the server has dropped its handle,
    the client creates it again from its source and goes on.
    """

    handle: str
    """Content address on the server."""
    teacher: str
    """Teacher it was made for; empty for the server's default."""
    label: str
    """What it stands for, for people: the prompt, the class, and so on."""
    expire_time: datetime | None = field(compare=False, default=None)
    """When the server may drop it, as told at creation; use extends it."""
    source: bytes = field(repr=False, default=b"")
    """Serialized ``carv.v1.ConditioningSource``; without handles for a blend."""
    blend: tuple[Conditioning, ...] = field(repr=False, default=())
    """The parts of a blend, in the order of the weights in ``source``."""


Conditionings = Conditioning | Sequence[Conditioning]
"""One conditioning for all renders, or one for each."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One term a(t) · ε̂(z_t, t, c) of the guidance combination."""

    conditioning: Conditionings
    """c: one for all renders, or one for each."""
    coefficient: npt.ArrayLike = 1.0
    """a: a number, or one value for each timestep of the teacher's grid, shape [N]."""
    use_reference_latents: bool = False
    """Evaluate at the reference latents, under the same (t, ε)."""


@dataclass(frozen=True)
class ConditioningTensor:
    """A tensor that the teacher takes as conditioning; ``shape`` is that of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """Bounds that a request to a teacher must keep."""

    max_message_bytes: int
    max_draws: int
    """K, draws per render."""
    max_renders: int
    """R, renders per request."""
    max_branches: int
    max_evaluations: int
    """R · K · branches."""
    max_prompts: int
    max_prompt_characters: int
    max_stream_requests: int = 0
    """In flight on one stream; 0 from a server that has no streams."""
    max_kept_latents: int = 0
    """Latents kept by handle; over it the least recently used go first."""
    max_kept_latents_bytes: int = 0
    """Likewise, as float32; latents of more bytes are not kept."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """What the server says about a teacher."""

    id: str
    digest: str
    """SHA-256 over the weights and everything else that changes an answer."""
    family: str
    """"analytic", "stable-diffusion" or "ddpm"."""
    event_shape: tuple[int, ...]
    """Shape of one render's latents."""
    schedule_kind: str
    """"discrete" or "flow"."""
    alpha: Float64Array
    """[N]: z_t = alpha[t]·x + sigma[t]·ε. Empty in ``list_teachers``."""
    sigma: Float64Array
    """[N]. Empty in ``list_teachers``."""
    prediction_type: str
    """What the checkpoint outputs: "epsilon", "v", "sample" or "flow". Clients only ever see
    noise predictions."""
    accepts_prompts: bool
    classes: int
    """Number of classes; 0 where the teacher takes no class ids."""
    has_unconditional: bool
    vocabulary: tuple[str, ...]
    """Where not empty, the only words that a prompt may hold."""
    conditioning_tensors: tuple[ConditioningTensor, ...]
    limits: Limits
    scaling_factor: float
    """latents = (encode(image) − shift_factor) · scaling_factor."""
    shift_factor: float
    evaluation_seconds: float
    """Mean time of one evaluation on the server; 0 until it has done one."""
    device: str
    description: str

    @property
    def timesteps(self) -> int:
        """N, the size of the grid; 0 in ``list_teachers``."""
        return len(self.alpha)


class DrawArguments(TypedDict):
    """The keyword arguments of ``estimate_gradient`` that make up explicit draws, each [R, K]."""

    timesteps: Int64Array
    noise_indices: Int64Array
    signs: Float32Array
    importance_weights: Float32Array


@dataclass(frozen=True, eq=False)
class DrawTable:
    """The draws behind an estimate, each [R, K]. ``**table.arguments`` with the reply's seed
    sends the same draws again."""

    timesteps: Int64Array
    noise_indices: Int64Array
    signs: Float32Array
    importance_weights: Float32Array
    """p/q of each draw."""
    norms: Float32Array | None = None
    """‖f‖ of each draw, the weighting included; importance weight and control variate left out.
    None from a server that does not report it."""
    control_coefficients: Float32Array | None = None
    """c(t) of the control variate at each draw; None where none was used. The objective's noise
    coefficient was d(t) + c(t) then, which a replay of the draws leaves at d(t)."""

    @property
    def arguments(self) -> DrawArguments:
        """Keyword arguments of ``estimate_gradient`` for these draws."""
        return DrawArguments(
            timesteps=self.timesteps,
            noise_indices=self.noise_indices,
            signs=self.signs,
            importance_weights=self.importance_weights,
        )


@dataclass(frozen=True, eq=False)
class Estimate:
    """A gradient with its diagnostics."""

    gradient: Float32Array = field(repr=False)
    """[R, *event_shape], float32, writable."""
    noise_variance: Float32Array | None
    """[R]: estimate of tr Cov of each render's gradient over (t, ε); None where a render has
    fewer than two independent groups of draws."""
    variance_estimator: str
    """"unbiased", "conservative" (not below the truth on average: stratified draws) or
    "unavailable"."""
    effective_sample_size: Float32Array
    """[R]: (Σw)²/Σw² over a render's importance weights, at most K."""
    seed: int
    """The seed used; send it again for the same draws."""
    sampler: str | None
    """Timestep sampler used; None where the draws were the client's own, as below."""
    proposal: str | None
    coupling: str | None
    draws_spent: int
    """R · K."""
    evaluations_spent: int
    """R · K · branches."""
    teacher_digest: str
    queue_seconds: float
    """From admission to the first forward."""
    compute_seconds: float
    """This request's share of the forwards that it took part in."""
    total_seconds: float
    """From decoding the request to encoding the reply, on the server."""
    draws: DrawTable | None = field(repr=False)
    """With ``return_draws=True``."""
    half_estimates: Float32Array | None = field(repr=False, default=None)
    """With ``return_half_estimates=True``: [2, R, *event_shape], two independent estimates from
    K/2 draws each, whose mean is ``gradient``. ‖J^T (g_A − g_B)‖²/4 is unbiased for the variance
    of J^T ``gradient`` over the draws, for any linear map J^T."""
    past_draws: float = 0.0
    """Draws of past requests, discounted by age, that the proposal and the control variate rest
    on; 0 where neither was learned."""
    history: str | None = None
    """Label of the past that was learned from; None where the draws were the client's own."""
    control_variate: str | None = None
    """Control variate used; None where the draws were the client's own."""


@dataclass(frozen=True, eq=False)
class RefinedEstimate:
    """A running mean of ``refine_gradient`` over the draws so far."""

    gradient: Float32Array = field(repr=False)
    """[R, *event_shape], float32, writable."""
    noise_variance: Float32Array | None
    """[R]: estimate of tr Cov of each render's gradient over (t, ε); None where a render has a
    single draw."""
    variance_estimator: str
    """"unbiased", "conservative" or "unavailable"."""
    relative_standard_error: Float64Array
    """[R]: √(noise variance) / ‖g‖, ‖g‖² less the noise in it; infinite where that is not above
    zero."""
    draws: Int64Array
    """[R]: draws in each render's mean."""
    stop_reasons: tuple[str | None, ...]
    """For each render "target", "draw_budget" or "time_budget"; None while it goes on."""
    final: bool
    """Whether this is the last one."""
    seed: int
    """The seed used; send it again for the same draws."""
    sampler: str
    """Timestep sampler used."""
    proposal: str
    coupling: str
    control_variate: str
    history: str
    draws_spent: int
    """Over all renders, with draws that only settled where others end."""
    evaluations_spent: int
    """draws_spent · branches."""
    teacher_digest: str
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    """From decoding the request to encoding this reply, on the server."""


@dataclass(frozen=True, eq=False)
class NoisePrediction:
    """Raw ε̂ at the client's own draws."""

    noise: Float32Array = field(repr=False)
    """[R, K, *event_shape], in noise units whatever the checkpoint predicts."""
    seed: int
    draws_spent: int
    """R · K."""
    evaluations_spent: int
    teacher_digest: str
    queue_seconds: float
    compute_seconds: float
    total_seconds: float


def as_tuple(conditioning: Conditionings) -> tuple[Conditioning, ...]:
    """One or many, as a tuple."""
    every: tuple[Any, ...] = (
        (conditioning,) if isinstance(conditioning, Conditioning) else tuple(conditioning)
    )
    if isinstance(conditioning, str) or not all(isinstance(one, Conditioning) for one in every):
        raise invalid("conditioning", f"{conditioning!r}: make one with create_conditioning")
    return every


def frozen(values: Any) -> Float64Array:
    """A read-only float64 array."""
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array
