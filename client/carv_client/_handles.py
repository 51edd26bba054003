"""Handles of conditionings and latents: creation, and quiet re-creation.

A server may drop a handle at any time after its expiry, or at a restart. Every call that uses
handles goes through ``Handles.call`` or ``Handles.stream``, which then create them anew and call
once more.

Where calls take turns among several servers, each has handles of its own, and the one that a
handle was created on is not the one that the request then goes to. Round by round they are created
more often at once, until all servers have had one: two rounds for two servers, five for sixteen.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from carv.errors import Reason
from carv.v1 import teacher_service_pb2 as pb
from carv.v1.conditioning_pb2 import ConditioningSource
from carv.v1.tensor_pb2 import Tensor
from carv_client import _replies, _requests
from carv_client._errors import CarvError, NotFoundError
from carv_client._kept import KeptLatents
from carv_client._rpcs import CREATE_CONDITIONING, CREATE_LATENTS, Rpc
from carv_client._transport import Deadline, Transport
from carv_client._types import Conditioning

__all__ = ["Handled", "Handles"]

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
T = TypeVar("T")

Handled = Conditioning | KeptLatents
"""What a handle stands for."""

_REMEMBERED = 256
_ROUNDS = 5


class Handles:
    """The handles that one client uses."""

    def __init__(self, transport: Transport, *, several_servers: bool = False) -> None:
        self._transport = transport
        self._rounds = _ROUNDS if several_servers else 1
        self._renewed: dict[Handled, str] = {}
        self._renewed_at: dict[Handled, float] = {}
        self._renewing: weakref.WeakValueDictionary[Handled, asyncio.Lock]
        self._renewing = weakref.WeakValueDictionary()
        self._backgrounds: dict[tuple[str, str | None], Conditioning] = {}

    def of(self, conditionings: Iterable[Conditioning]) -> list[str]:
        """The handles to send today."""
        return [self.now(each) for each in conditionings]

    def now(self, used: Handled) -> str:
        """The handle to send today."""
        return self._renewed.get(used, used.handle)

    async def keep(self, latents: Tensor, teacher: str, deadline: Deadline) -> KeptLatents:
        """Have the server keep latents."""
        request = pb.CreateLatentsRequest(teacher=teacher, latents=latents)
        reply = await self._transport.call(CREATE_LATENTS, request, deadline)
        return _replies.kept_latents(reply.latents, teacher, latents)

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

        def send() -> Awaitable[pb.CreateConditioningResponse]:
            return self._transport.call(CREATE_CONDITIONING, request, deadline)

        reply = await self.call(send, fill, blended, deadline)
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
        send: Callable[[], Awaitable[T]],
        fill: Callable[[], None],
        used: Iterable[Handled],
        deadline: Deadline,
    ) -> T:
        """Send a request; where a handle is gone create what may be of ``used`` again, and send
        once more.

        ``fill`` writes the handles of ``used`` into the request.
        """
        for times in self._renewals():
            fill()
            sent = asyncio.get_running_loop().time()
            try:
                return await send()
            except NotFoundError as error:
                gone = _gone(error, used)
                if not gone:
                    raise
            await self._renew_all(gone, times, sent, deadline)
        fill()
        return await send()

    async def stream(
        self,
        rpc: Rpc[Request, Reply],
        request: Request,
        fill: Callable[[], None],
        used: Iterable[Handled],
        deadline: Deadline,
    ) -> AsyncGenerator[Reply]:
        """As ``call``, for a stream; handles are made again only ahead of its first reply."""
        for times in (*self._renewals(), 0):
            fill()
            sent = asyncio.get_running_loop().time()
            received = False
            try:
                async with aclosing(self._transport.stream(rpc, request, deadline)) as replies:
                    async for reply in replies:
                        received = True
                        yield reply
                return
            except NotFoundError as error:
                gone = _gone(error, used)
                if not times or received or not gone:
                    raise
            await self._renew_all(gone, times, sent, deadline)

    def _renewals(self) -> Iterator[int]:
        """How often at once to create what is gone, round by round."""
        return (2**done for done in range(self._rounds))

    async def _renew_all(
        self, gone: Iterable[Handled], times: int, sent: float, deadline: Deadline
    ) -> None:
        await asyncio.gather(*(self._renew(each, times, sent, deadline) for each in gone))

    async def _renew(self, used: Handled, times: int, sent: float, deadline: Deadline) -> None:
        """Create again, unless a request in flight beside has done so since ``sent``."""
        lock = self._renewing.setdefault(used, asyncio.Lock())
        async with lock:
            if self._renewed_at.get(used, -math.inf) >= sent:
                return
            made, *_ = await asyncio.gather(
                *(self._create_again(used, deadline) for _ in range(times))
            )
            self._renewed.pop(used, None)
            if made.handle != used.handle:  # the same content mostly has the same address
                _remember(self._renewed, used, made.handle)
            _remember(self._renewed_at, used, asyncio.get_running_loop().time())

    async def _create_again(self, used: Handled, deadline: Deadline) -> Handled:
        if isinstance(used, KeptLatents):
            return await self.keep(Tensor.FromString(used.tensor), used.teacher, deadline)
        source = ConditioningSource.FromString(used.source)
        parts = [(used.label, source)]
        return (await self.create(parts, source, used.teacher, deadline, used.blend))[0]


def _gone(error: CarvError, used: Iterable[Handled]) -> set[Handled]:
    """What of ``used`` may have to be made again. An error of latents names conditionings too,
    where both are gone; conditionings are small, latents are not."""
    if error.reason == Reason.LATENTS_NOT_FOUND.value:
        return set(used)
    if error.reason == Reason.CONDITIONING_NOT_FOUND.value:
        return {each for each in used if isinstance(each, Conditioning)}
    return set()


K = TypeVar("K")
V = TypeVar("V")


def _remember(store: dict[K, V], key: K, value: V) -> None:
    """Put into a bounded store; the oldest goes first, and costs one more call if needed."""
    if key not in store and len(store) >= _REMEMBERED:
        store.pop(next(iter(store)))
    store[key] = value
