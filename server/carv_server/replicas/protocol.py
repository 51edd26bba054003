"""The work a replica is given and what it gives back: arrays and plain types only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from carv_server.sampling.reduce import Reduction
from carv_server.teachers.protocol import Source, TeacherDescription, Tensors

__all__ = [
    "Branch",
    "Conditioning",
    "Encoder",
    "MicrobatchResult",
    "NonFiniteDraw",
    "Replica",
    "ReplicaLost",
    "ReplicaStartError",
    "Wanted",
    "Work",
    "WorkResult",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Wanted = Callable[[int], bool]
"""Whether the work of that index is still wanted; may be called in any thread."""


@dataclass(frozen=True)
class Conditioning:
    """One row of conditioning and the handle that stands for it."""

    handle: str
    tensors: Tensors

    @cached_property
    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes; rows share a forward only where these agree."""
        return tuple(sorted((name, tuple(t.shape)) for name, t in self.tensors.items()))


@dataclass(frozen=True)
class Branch:
    """One guidance branch: one conditioning for all renders, or one for each.

    Attributes:
        use_reference: evaluate at the reference latents.
    """

    conditionings: Sequence[Conditioning]
    use_reference: bool = False

    def conditioning(self, render: int) -> Conditioning:
        return self.conditionings[render if len(self.conditionings) > 1 else 0]


@dataclass(frozen=True)
class Work:
    """n draws of one request, evaluated in one microbatch. Arrays of the host: a replica makes
    tensors of a whole microbatch, since making them costs more than filling them.

    Attributes:
        latents, reference_latents: float32 [R, *event_shape] of the whole request.
            With ``latents_are_noisy`` they are z_t itself.
        renders, timesteps, noise_indices, groups, cells: int64 [n]; see ``DrawPlan``.
        signs: float32 [n].
        scales: float32 [n], importance weight times w(t).
        branch_coefficients: float32 [B, n], a_j(t).
        noise_coefficients: float32 [n], d(t).
        control_coefficients: float32 [n], c(t), added to d(t) but left out of ``residuals``.
        streams: int64 [n], 0 or 1, where two streams of one plan are evaluated together, twin
            cells next to each other; else None.
        keep_predictions: return eps_hat of every draw in place of the reduced integrand.
    """

    seed: int
    latents: Float32Array
    reference_latents: Float32Array | None
    branches: Sequence[Branch]
    renders: Int64Array
    timesteps: Int64Array
    noise_indices: Int64Array
    groups: Int64Array
    cells: Int64Array
    signs: Float32Array
    scales: Float32Array
    branch_coefficients: Float32Array
    noise_coefficients: Float32Array
    control_coefficients: Float32Array
    streams: Int64Array | None = None
    latents_are_noisy: bool = False
    keep_predictions: bool = False

    @property
    def evaluations(self) -> int:
        return len(self.renders) * len(self.branches)


@dataclass(frozen=True)
class NonFiniteDraw:
    """The teacher gave NaN or infinity at this draw."""

    render: int
    timestep: int
    noise_index: int


@dataclass(frozen=True)
class WorkResult:
    """Per-render sums, or predictions float32 [n, *event_shape]; or the first draw that was not
    finite.

    Attributes:
        residuals: float64 [n, 3], with the reduction: ||h||^2, <h, eps> and
            ||eps||^2 of each draw, h = sum_j a_j eps_hat + d eps.
    """

    reduction: Reduction | None = None
    residuals: Float64Array | None = None
    predictions: Float32Array | None = None
    failure: NonFiniteDraw | None = None


@dataclass(frozen=True)
class MicrobatchResult:
    """Results in the order of the works, None for those left out because nobody wanted them any
    more; and the seconds that the forward took."""

    results: Sequence[WorkResult | None]
    seconds: float


class ReplicaLost(Exception):
    """The replica is gone and so is its microbatch, of which nothing was counted: the same draws
    may run elsewhere."""


class ReplicaStartError(Exception):
    """No replica can be had this way: the teacher, the device or the cluster refuses, and says
    why."""


class Encoder(Protocol):
    """What is asked of a teacher apart from its forward; any of its replicas can answer."""

    @property
    def description(self) -> TeacherDescription: ...

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        ...

    async def encode(self, source: Source) -> Sequence[Tensors]:
        """As ``Teacher.encode``."""
        ...


class Replica(Encoder, Protocol):
    """One teacher on one device."""

    @property
    def in_flight(self) -> int:
        """Microbatches that it may have at once, the one that runs included. A further one is
        handed over shortly before the one ahead ends, so that its device never waits."""
        ...

    def run(self, works: Sequence[Work], wanted: Wanted) -> Awaitable[MicrobatchResult]:
        """Evaluate one microbatch; the works' conditionings share one signature. A future in place
        of a coroutine spares the event loop a task. Raises nothing before it is awaited.

        Args:
            wanted: whether a work, by its index, still is; asked as late as the replica can, so
                that nothing is spent on requests that end while it waits for the device.

        Raises:
            ReplicaLost: the process or the device is gone.
        """
        ...
