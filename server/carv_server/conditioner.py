"""Sources to conditionings that are kept.

What has to be encoded goes to the device past the queue of requests, and so past the tenants'
shares of it. Hence it is charged, and takes turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from carv.errors import FieldViolation, Reason
from carv_server.call import Call
from carv_server.conditioning import ConditioningStore
from carv_server.errors import RequestError, invalid
from carv_server.replicas.protocol import Encoder, ReplicaLost
from carv_server.scheduling.outcomes import no_replica
from carv_server.teachers.protocol import Classes, Prompts, Source, SourceError, Tensors
from carv_server.tenants.access import access_check

__all__ = ["Conditioner"]

# Behind the one that is encoded, of one tenant and teacher.
_MOST_WAITING = 16
# Encoding takes milliseconds, for long prompts on a CPU tenths of a second.
_RETRY_SECONDS = 0.5


@dataclass
class _Turns:
    """Of one tenant and teacher.

    Attributes:
        present: sources that are encoded or wait to be.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    present: int = 0


class Conditioner:
    """Encodes for all teachers. Lives on one event loop.

    A row costs its tenant's quota one evaluation. Of a tenant and a teacher one source is encoded
    at a time, and the others wait in order: however many a tenant sends, the device has one of them
    between the microbatches of all. Without tenants each connection is taken for one.
    """

    def __init__(self, store: ConditioningStore) -> None:
        self._store = store
        self._turns: dict[tuple[str, str], _Turns] = {}

    async def keep(
        self, teacher: str, encoder: Encoder, source: Source, handles: Sequence[str], call: Call
    ) -> dict[str, float]:
        """Encode a source and keep its rows; wall-clock expiry by handle. What the tenant has kept
        already is not encoded again.

        Args:
            handles: of the source's rows, in their order.

        Raises:
            RequestError: INVALID_FIELD, where the source does not fit the teacher; QUOTA_EXCEEDED;
                QUEUE_FULL, where too many of the tenant's sources wait; NO_REPLICA; and as
                ``access_check`` where the tenant is taken out meanwhile.
        """
        kept = self._kept(teacher, handles, call.tenant)
        if len(kept) == len(set(handles)):
            return self._put(teacher, kept, call.tenant)
        check = access_check(teacher)
        key = (call.tenant or call.caller, teacher)
        turns = self._turns.setdefault(key, _Turns())
        if turns.present > _MOST_WAITING:
            raise RequestError(
                Reason.QUEUE_FULL,
                f"{_MOST_WAITING} sources of yours wait to be encoded already; retry after "
                f"{_RETRY_SECONDS:.2f} s",
                retry_delay_seconds=_RETRY_SECONDS,
            )
        turns.present += 1
        try:
            await turns.turn.acquire()
        except BaseException:
            self._leave(key, turns)
            raise
        encoding = asyncio.create_task(self._encode(teacher, encoder, source, handles, call, check))

        def ended(_: object) -> None:
            turns.turn.release()
            self._leave(key, turns)

        # The device goes on where the caller leaves: so does the turn.
        encoding.add_done_callback(ended)
        return await asyncio.shield(encoding)

    async def _encode(
        self,
        teacher: str,
        encoder: Encoder,
        source: Source,
        handles: Sequence[str],
        call: Call,
        check: Callable[[], None],
    ) -> dict[str, float]:
        check()
        # Those ahead may have encoded some of it.
        kept = self._kept(teacher, handles, call.tenant)
        first = {handle: i for i, handle in reversed(list(enumerate(handles)))}
        missing = sorted(i for handle, i in first.items() if handle not in kept)
        if not missing:
            return self._put(teacher, kept, call.tenant)
        part, places = _part(source, missing)
        try:
            with call.charged(len(places)):
                rows = await encoder.encode(part)
        except SourceError as error:
            raise invalid(
                [FieldViolation(_field(fault, part, places), str(fault)) for fault in error.all]
            ) from None
        except ReplicaLost as error:
            raise no_replica(str(error)) from None
        found = {handles[i]: row for i, row in zip(places, rows, strict=True)}
        return self._put(teacher, {**kept, **found}, call.tenant)

    def _kept(self, teacher: str, handles: Sequence[str], tenant: str) -> dict[str, Tensors]:
        found = {handle: self._store.get(handle, teacher, tenant) for handle in handles}
        return {handle: each.tensors for handle, each in found.items() if each is not None}

    def _put(self, teacher: str, rows: Mapping[str, Tensors], tenant: str) -> dict[str, float]:
        return {
            handle: self._store.put(handle, teacher, tensors, tenant)
            for handle, tensors in rows.items()
        }

    def _leave(self, key: tuple[str, str], turns: _Turns) -> None:
        turns.present -= 1
        if turns.present == 0:
            del self._turns[key]


def _part(source: Source, places: Sequence[int]) -> tuple[Source, Sequence[int]]:
    """The prompts or classes at some places, and these; other sources are one row."""
    match source:
        case Prompts(prompts=prompts):
            return Prompts(tuple(prompts[i] for i in places)), places
        case Classes(class_ids=class_ids):
            return Classes(tuple(class_ids[i] for i in places)), places
        case _:
            return source, [0]


def _field(fault: SourceError, part: Source, places: Sequence[int]) -> str:
    """As the client numbers prompts or classes."""
    head, _, index = fault.field.rpartition("[")
    if isinstance(part, Prompts | Classes) and head:
        return f"source.{head}[{places[int(index.removesuffix(']'))]}]"
    return f"source.{fault.field}"
