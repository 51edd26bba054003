"""From the arguments that say what a gradient is of to the parts of a request that carry it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy.typing as npt

from carv.v1 import teacher_service_pb2 as pb
from carv.v1.objective_pb2 import Objective
from carv.v1.tensor_pb2 import Tensor
from carv_client import _requests
from carv_client._errors import invalid
from carv_client._guidance import guidance_coefficients
from carv_client._handles import Handled, Handles
from carv_client._kept import KeptLatents, LatentsLike
from carv_client._transport import Deadline
from carv_client._types import (
    Branch,
    Conditioning,
    Conditionings,
    Guidance,
    NamedWeighting,
    WireDtype,
    as_tuple,
)

__all__ = [
    "ObjectiveSettings",
    "Posed",
    "Question",
    "encode_latents",
    "one_teacher",
    "pose",
    "render_count",
]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The keyword arguments of ``estimate_gradient`` that say what is estimated."""

    guidance_scale: float = 7.5
    guidance: Guidance = "standard"
    negative_prompt: str | None = None
    teacher: str | None = None
    timestep_range: tuple[float, float] = (0.02, 0.98)
    prior: npt.ArrayLike | None = None
    weighting: NamedWeighting | npt.ArrayLike = "sds"
    branches: Sequence[Branch] | None = None
    noise_coefficient: npt.ArrayLike = -1.0
    reference_latents: LatentsLike | None = None
    wire_dtype: WireDtype | None = None


Posed = pb.EstimateGradientRequest | pb.RefineGradientRequest | pb.ProfileTeacherRequest
"""Requests that ask a question."""


@dataclass(frozen=True)
class Question:
    """What a request asks about; the objective has no handles yet."""

    teacher: str
    latents: Tensor | KeptLatents
    reference: KeptLatents | None
    objective: Objective
    terms: Sequence[Branch]

    @property
    def renders(self) -> int:
        """R."""
        return render_count(self.latents)

    @property
    def used(self) -> list[Handled]:
        """All that is named by a handle."""
        kept = [each for each in (self.latents, self.reference) if isinstance(each, KeptLatents)]
        return [*_conditionings(self.terms), *kept]

    def put(self, request: Posed) -> None:
        """Write the question into a request, all but its handles."""
        request.teacher = self.teacher
        if isinstance(self.latents, Tensor):
            request.latents.CopyFrom(self.latents)
        request.objective.CopyFrom(self.objective)

    def filler(self, handles: Handles, request: Posed) -> Callable[[], None]:
        """A function that writes the handles of now into a request."""

        def fill() -> None:
            for message, term in zip(request.objective.branches, self.terms, strict=True):
                message.conditionings[:] = handles.of(as_tuple(term.conditioning))
            if isinstance(self.latents, KeptLatents):
                request.latents_handle = handles.now(self.latents)
            if self.reference is not None:
                request.objective.reference_latents_handle = handles.now(self.reference)

        return fill


def render_count(latents: Tensor | KeptLatents) -> int:
    """R."""
    return latents.shape[0] if latents.shape else 1


async def pose(
    handles: Handles,
    latents: LatentsLike,
    conditioning: Conditionings | None,
    settings: ObjectiveSettings,
    deadline: Deadline,
) -> Question:
    """Encode the latents and the objective; embeds the unconditional branch where it counts.

    Raises:
        CarvError: contradictory arguments, and what ``create_conditioning`` raises.
    """
    encoded = encode_latents("latents", latents, settings.wire_dtype)
    reference = None
    if settings.reference_latents is not None:
        field = "reference_latents"
        reference = encode_latents(field, settings.reference_latents, settings.wire_dtype)
    given = None if conditioning is None else as_tuple(conditioning)
    branches = settings.branches
    used = (given or ()) if branches is None else tuple(_conditionings(branches))
    kept = [each for each in (encoded, reference) if isinstance(each, KeptLatents)]
    teacher = one_teacher(settings.teacher or "", [*used, *kept])
    if branches is not None:
        if conditioning is not None or settings.negative_prompt is not None:
            raise invalid("branches", "replaces conditioning and negative_prompt: give one")
        terms = list(branches)
    else:
        terms = await _guide(handles, given, settings, teacher, deadline)
    objective = _requests.objective(
        terms,
        settings.noise_coefficient,
        settings.weighting,
        settings.timestep_range,
        settings.prior,
    )
    if isinstance(reference, Tensor):
        objective.reference_latents.CopyFrom(reference)
        reference = None
    return Question(teacher, encoded, reference, objective, terms)


def encode_latents(
    field: str, latents: LatentsLike, wire_dtype: WireDtype | None
) -> Tensor | KeptLatents:
    """Values as a tensor; what is kept stays as it is."""
    if isinstance(latents, KeptLatents):
        return latents
    return _requests.tensor(field, latents, wire_dtype)


async def _guide(
    handles: Handles,
    conditioning: tuple[Conditioning, ...] | None,
    settings: ObjectiveSettings,
    teacher: str,
    deadline: Deadline,
) -> list[Branch]:
    """Classifier-free guidance, embedding the unconditional branch only where it counts."""
    negative_prompt = settings.negative_prompt
    if conditioning is None:
        if negative_prompt is not None:
            raise invalid("negative_prompt", "there is no conditioning to guide away from it")
        return [Branch(await handles.background(teacher, negative_prompt, deadline), 1.0)]
    scale = settings.guidance_scale
    conditional, remainder = guidance_coefficients(scale, settings.guidance)
    terms = [Branch(conditioning, conditional)] if conditional != 0.0 else []
    if remainder != 0.0:
        background = await handles.background(teacher, negative_prompt, deadline)
        terms.append(Branch(background, remainder))
    return terms


def _conditionings(branches: Iterable[Branch]) -> list[Conditioning]:
    return [each for branch in branches for each in as_tuple(branch.conditioning)]


def one_teacher(teacher: str, used: Iterable[Handled]) -> str:
    """The teacher to ask: the one named, else the one that what is used belongs to.

    Raises:
        InvalidRequestError: they disagree.
    """
    named = {each.teacher for each in used if each.teacher}
    if len(named | ({teacher} - {""})) > 1:
        every = ", ".join(sorted(named | {teacher} - {""}))
        raise invalid("teacher", f"what is used and teacher disagree: {every}")
    return teacher or next(iter(named), "")
