# ruff: noqa: ASYNC109 - the timeout is a gRPC deadline: it travels, and bounds the retries too
"""Calls about teachers, and about what a server keeps for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import numpy.typing as npt

from carv.v1 import teacher_service_pb2 as pb
from carv_client import _replies, _requests
from carv_client._config import ClientConfig
from carv_client._core import ClientCore, Randomness
from carv_client._errors import invalid
from carv_client._kept import KeptLatents
from carv_client._objective import one_teacher
from carv_client._rpcs import GET_TEACHER, LIST_TEACHERS
from carv_client._types import Conditioning, Teacher, WireDtype, as_tuple

__all__ = ["TeacherCalls"]


class TeacherCalls(ClientCore):
    """``list_teachers``, ``get_teacher``, ``create_conditioning``, ``keep_latents``."""

    def __init__(self, config: ClientConfig, randomness: Randomness) -> None:
        super().__init__(config, randomness)
        self._teachers: dict[str, Teacher] = {}

    async def list_teachers(self, *, timeout: float | None = None) -> list[Teacher]:
        """All teachers of the server, without their schedules; the first is the default."""
        request = pb.ListTeachersRequest()
        reply = await self._transport.call(LIST_TEACHERS, request, self._deadline(timeout))
        return [_replies.teacher(message) for message in reply.teachers]

    async def get_teacher(
        self, teacher: str | None = None, *, refresh: bool = False, timeout: float | None = None
    ) -> Teacher:
        """One teacher, with its schedule. Asked once, then remembered, unless ``refresh``: only
        ``evaluation_seconds`` changes while a server runs."""
        key = teacher or ""
        if refresh or key not in self._teachers:
            request = pb.GetTeacherRequest(teacher=key)
            reply = await self._transport.call(GET_TEACHER, request, self._deadline(timeout))
            self._teachers[key] = _replies.teacher(reply.teacher)
        return self._teachers[key]

    @overload
    async def create_conditioning(
        self,
        prompt: str | None = None,
        *,
        class_id: int | None = None,
        tensors: Mapping[str, npt.ArrayLike] | None = None,
        unconditional: bool = False,
        blend: Sequence[tuple[Conditioning, float]] | None = None,
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> Conditioning: ...
    @overload
    async def create_conditioning(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> list[Conditioning]: ...
    @overload
    async def create_conditioning(
        self,
        *,
        class_id: list[int] | tuple[int, ...],
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> list[Conditioning]: ...
    async def create_conditioning(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        class_id: int | Sequence[int] | None = None,
        tensors: Mapping[str, npt.ArrayLike] | None = None,
        unconditional: bool = False,
        blend: Sequence[tuple[Conditioning, float]] | None = None,
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> Conditioning | list[Conditioning]:
        """Have the server embed and keep a conditioning. Give exactly one source.

        Args:
            prompt: a text, or several for a list of conditionings in the same order.
            class_id: a class, or several.
            tensors: the teacher's own conditioning tensors of one row, by name (see
                ``Teacher.conditioning_tensors``).
            unconditional: the empty prompt, the null class, or nothing at all.
            blend: (conditioning, weight) pairs; weights at least 0 that sum to 1. A blend of
                "front view" and "side view" is how view-dependent prompts turn smoothly.

        Raises:
            InvalidRequestError: a word outside the vocabulary, a class out of range, no or more
                than one source, and so on.
        """
        given = [
            name
            for name, value in (
                ("prompt", prompt),
                ("class_id", class_id),
                ("tensors", tensors),
                ("unconditional", unconditional or None),
                ("blend", blend),
            )
            if value is not None
        ]
        if len(given) != 1:
            raise invalid("source", f"takes exactly one source, got {', '.join(given) or 'none'}")
        deadline, teacher = self._deadline(timeout), teacher or ""
        create = self._handles.create
        if prompt is not None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            parts = [(text, _requests.source(prompts=[text])) for text in prompts]
            made = await create(parts, _requests.source(prompts=prompts), teacher, deadline)
            return made[0] if isinstance(prompt, str) else made
        if class_id is not None:
            ids = list(class_id) if isinstance(class_id, Sequence) else [class_id]
            parts = [(f"class {value}", _requests.source(class_ids=[value])) for value in ids]
            made = await create(parts, _requests.source(class_ids=ids), teacher, deadline)
            return made if isinstance(class_id, Sequence) else made[0]
        blended: tuple[Conditioning, ...] = ()
        if blend is not None:
            blended = as_tuple([part for part, _ in blend])
            source = _requests.source(blend_weights=[weight for _, weight in blend])
            label = " + ".join(f"{weight:g} · {part.label}" for part, weight in blend)
            teacher = one_teacher(teacher, blended)
        elif tensors is not None:
            source, label = _requests.source(tensors=tensors), f"tensors {', '.join(tensors)}"
        else:
            source, label = _requests.source(), "unconditional"
        return (await create([(label, source)], source, teacher, deadline, blended))[0]

    async def keep_latents(
        self,
        latents: npt.ArrayLike,
        *,
        teacher: str | None = None,
        wire_dtype: WireDtype | None = None,
        timeout: float | None = None,
    ) -> KeptLatents:
        """Send latents once; what comes back stands for them wherever latents are taken.

        Worth it where the same latents are asked about again: several objectives, more draws,
        the reference of delta denoising. The server keeps them for a while after their last use,
        within its limits (``Teacher.limits``). When it has dropped them the client sends them
        again, so it keeps a copy too.

        Args:
            latents: x, [R, *event_shape].
            wire_dtype: what they travel as, by default their own dtype. The same values as
                another dtype are other latents.

        Raises:
            InvalidRequestError: with every field that breaks the contract.
        """
        message = _requests.tensor("latents", latents, wire_dtype)
        return await self._handles.keep(message, teacher or "", self._deadline(timeout))
