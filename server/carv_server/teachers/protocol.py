"""What the server needs of a teacher, whatever the model behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.schedule import Schedule

__all__ = [
    "Classes",
    "ConditioningSpec",
    "Prompts",
    "RawTensors",
    "Source",
    "SourceError",
    "Teacher",
    "TeacherDescription",
    "TensorSpec",
    "Tensors",
    "Unconditional",
    "check_each",
    "check_prompts",
]

Item = TypeVar("Item")

Tensors = Mapping[str, torch.Tensor]
"""Conditioning tensors by name; CPU, one row, no batch axis."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, torch dtype and row shape of one conditioning tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ConditioningSpec:
    """What a teacher can be conditioned on.

    Attributes:
        accepts_prompts: text prompts.
        classes: number of class ids; 0 where there are none.
        has_unconditional: whether an unconditional input exists.
        tensors: what a row of raw conditioning holds.
        vocabulary: the only words that prompts may hold; empty means any.
    """

    accepts_prompts: bool
    classes: int
    has_unconditional: bool
    tensors: tuple[TensorSpec, ...]
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True)
class TeacherDescription:
    """Everything about a teacher that does not change.

    Attributes:
        digest: SHA-256, hexadecimal, over all that changes an answer.
        event_shape: shape of one render's latents.
        scaling_factor, shift_factor: latents = (encode(image) - shift) * scale.
        arithmetic: False for a stand-in whose replica is to make no noise and no z_t, and to
            answer with zeros: a measure of the service around a forward, and of nothing else.
    """

    digest: str
    family: str
    event_shape: tuple[int, ...]
    schedule: Schedule
    prediction_type: PredictionType
    conditioning: ConditioningSpec
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    description: str = ""
    arithmetic: bool = True


@dataclass(frozen=True)
class Prompts:
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Classes:
    class_ids: tuple[int, ...]


@dataclass(frozen=True)
class Unconditional:
    pass


@dataclass(frozen=True)
class RawTensors:
    tensors: Tensors


Source = Prompts | Classes | Unconditional | RawTensors


class SourceError(ValueError):
    """A source that this teacher cannot turn into conditioning. ``field`` is its path below
    the source, for instance ``prompts.prompts[1]``."""

    def __init__(self, field: str, message: str, more: Sequence[SourceError] = ()) -> None:
        super().__init__(message)
        self.field = field
        self._more = tuple(more)

    @property
    def all(self) -> tuple[SourceError, ...]:
        """This fault and the others of the same source."""
        return (self, *self._more)


class Teacher(Protocol):
    """A frozen diffusion model on one device. Called from one thread at a time."""

    @property
    def description(self) -> TeacherDescription: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, source: Source) -> Sequence[Tensors]:
        """One row of conditioning tensors per prompt or class.

        Raises:
            SourceError: the source does not fit the teacher; nothing was encoded.
        """
        ...

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        """eps_hat(z_t, t, c) in noise units, float32 [n, *event_shape].

        Args:
            z_t: float32 [n, *event_shape] on the device.
            timesteps: int64 [n] on the device, indices of the schedule's grid.
            conditioning: each tensor [n, *row shape] on the device.
        """
        ...


def check_prompts(prompts: Sequence[str], vocabulary: Sequence[str]) -> None:
    """Refuse words outside a closed vocabulary.

    Raises:
        SourceError: names the first prompt at fault, its unknown words and the known ones.
    """
    known = {word.lower() for word in vocabulary}
    if not known:
        return

    def check(i: int, prompt: str) -> None:
        words = prompt.lower().replace(",", " ").replace(".", " ").split()
        unknown = sorted({word for word in words if word not in known})
        if unknown:
            raise SourceError(
                f"prompts.prompts[{i}]",
                f"this teacher does not know {', '.join(map(repr, unknown))}; "
                f"it knows: {', '.join(sorted(word for word in known if word not in ',.'))}",
            )

    check_each(prompts, check)


def check_each(items: Sequence[Item], check: Callable[[int, Item], None]) -> None:
    """Check every item of a source.

    Raises:
        SourceError: the first fault, with all the others.
    """
    faults: list[SourceError] = []
    for i, item in enumerate(items):
        try:
            check(i, item)
        except SourceError as error:
            faults.append(error)
    if faults:
        raise SourceError(faults[0].field, str(faults[0]), faults[1:])
