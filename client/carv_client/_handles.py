"""Conditionings and the handles that stand for them: creation, and quiet re-creation.

A server may drop a handle at any time after its expiry, or at a restart. Every call that uses
handles goes through ``Handles.call`` or ``Handles.stream``, which then create them anew and call
once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from carv.errors import Reason
from carv.v1 import teacher_service_pb2 as pb
from carv.v1.conditioning_pb2 import ConditioningSource
from carv_client import _replies, _requests
from carv_client._errors import CarvError, NotFoundError
from carv_client._transport import CREATE_CONDITIONING, Deadline, Rpc, Transport
from carv_client._types import Conditioning

__all__ = ["Handles"]

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

_REMEMBERED = 256


class Handles:
    """The handles that one client uses."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._renewed: dict[Conditioning, str] = {}
        self._backgrounds: dict[tuple[str, str | None], Conditioning] = {}

    def of(self, conditionings: Iterable[Conditioning]) -> list[str]:
        """The handles to send today."""
        return [self._renewed.get(each, each.handle) for each in conditionings]

    async def create(
        self,
        parts: Sequence[tuple[str, ConditioningSource]],
        source: ConditioningSource,
        teacher: str,
        deadline: Deadline,
        blended: tuple[Conditioning, ...] = (),
    ) -> list[Conditioning]:
        """Create all that ``source`` describes; each of ``parts``, (label, source), describes
        one of the conditionings that come back. ``blended`` fills in the handles of a blend."""
        request = pb.CreateConditioningRequest(teacher=teacher, source=source)

        def fill() -> None:
            if blended:
                request.source.blend.handles[:] = self.of(blended)

        reply = await self.call(CREATE_CONDITIONING, request, fill, blended, deadline)
        return [
            _replies.conditioning(message, teacher, label, part, blended)
            for message, (label, part) in zip(reply.conditionings, parts, strict=True)
        ]

    async def background(
        self, teacher: str, negative_prompt: str | None, deadline: Deadline
    ) -> Conditioning:
        """The unconditional conditioning, or a negative prompt's; made once for each teacher."""
        key = (teacher, negative_prompt)
        if key not in self._backgrounds:
            if negative_prompt is None:
                label, source = "unconditional", _requests.source()
            else:
                label, source = negative_prompt, _requests.source(prompts=[negative_prompt])
            made = await self.create([(label, source)], source, teacher, deadline)
            _remember(self._backgrounds, key, made[0])
        return self._backgrounds[key]

    async def call(
        self,
        rpc: Rpc[Request, Reply],
        request: Request,
        fill: Callable[[], None],
        used: Iterable[Conditioning],
        deadline: Deadline,
    ) -> Reply:
        """Call; where a handle is gone create all of ``used`` again and call once more.

        ``fill`` writes the handles of ``used`` into ``request``.
        """
        fill()
        used = set(used)
        try:
            return await self._transport.call(rpc, request, deadline)
        except NotFoundError as error:
            if not _gone(error, used):
                raise
        await self._renew_all(used, deadline)
        fill()
        return await self._transport.call(rpc, request, deadline)

    async def stream(
        self,
        rpc: Rpc[Request, Reply],
        request: Request,
        fill: Callable[[], None],
        used: Iterable[Conditioning],
        deadline: Deadline,
    ) -> AsyncGenerator[Reply]:
        """As ``call``, for a stream; handles are made again only ahead of its first reply."""
        used = set(used)
        for renewable in (True, False):
            fill()
            received = False
            try:
                async with aclosing(self._transport.stream(rpc, request, deadline)) as replies:
                    async for reply in replies:
                        received = True
                        yield reply
                return
            except NotFoundError as error:
                if not renewable or received or not _gone(error, used):
                    raise
            await self._renew_all(used, deadline)

    async def _renew_all(self, used: Iterable[Conditioning], deadline: Deadline) -> None:
        await asyncio.gather(*(self._renew(each, deadline) for each in used))

    async def _renew(self, conditioning: Conditioning, deadline: Deadline) -> None:
        source = ConditioningSource.FromString(conditioning.source)
        parts = [(conditioning.label, source)]
        teacher, blend = conditioning.teacher, conditioning.blend
        made = await self.create(parts, source, teacher, deadline, blend)
        self._renewed.pop(conditioning, None)
        if made[0].handle != conditioning.handle:  # the same content mostly has the same address
            _remember(self._renewed, conditioning, made[0].handle)


def _gone(error: CarvError, used: set[Conditioning]) -> bool:
    """Whether making ``used`` again may help."""
    return error.reason == Reason.CONDITIONING_NOT_FOUND.value and bool(used)


K = TypeVar("K")
V = TypeVar("V")


def _remember(store: dict[K, V], key: K, value: V) -> None:
    """Put into a bounded store; the oldest goes first, and costs one more call if needed."""
    if key not in store and len(store) >= _REMEMBERED:
        store.pop(next(iter(store)))
    store[key] = value
