"""CreateConditioning's way to the device: charged, in turns, and nothing encoded twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from carv.errors import Reason
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.call import Call
from carv_server.conditioner import Conditioner
from carv_server.conditioning import ConditioningStore, source_handles
from carv_server.errors import RequestError
from carv_server.serve import RunningServer
from carv_server.store import StoreConfig
from carv_server.teachers.protocol import (
    Classes,
    Prompts,
    Source,
    SourceError,
    TeacherDescription,
    Tensors,
    Unconditional,
)
from carv_server.tenants.access import Access
from carv_server.tenants.quota import Quota
from tests.server.teachers import Wrapped, oracle_teacher
from tests.server.wire import failure_of, path
from tests.support.tenants import bearer, serving, tenant
from tests.support.until import until

MOST_WAITING = 16


class Encoder:
    """Encodes while its gate is open.

    Attributes:
        sources: in the order in which they came.
        most: that were here at once.
        charged: evaluations of ``quota`` in flight, at each.
    """

    def __init__(self, quota: Quota | None = None) -> None:
        self.gate = asyncio.Event()
        self.sources: list[Source] = []
        self.charged: list[int] = []
        self.present = self.most = self.ended = 0
        self._quota = quota

    @property
    def description(self) -> TeacherDescription:
        return oracle_teacher().description

    @property
    def device(self) -> str:
        return "cpu"

    async def encode(self, source: Source) -> Sequence[Tensors]:
        self.sources.append(source)
        self.charged.append(0 if self._quota is None else self._quota.in_flight)
        self.present += 1
        self.most = max(self.most, self.present)
        try:
            await self.gate.wait()
        finally:
            self.present -= 1
            self.ended += 1
        match source:
            case Classes(class_ids=class_ids):
                if bad := [i for i, c in enumerate(class_ids) if c < 0]:
                    faults = [SourceError(f"classes.class_ids[{i}]", "is below 0") for i in bad]
                    raise SourceError(faults[0].field, str(faults[0]), faults[1:])
                return [{"class_label": torch.tensor(c)} for c in class_ids]
            case Prompts():
                raise SourceError("prompts", "takes no prompts")
            case _:
                return [{}]


class Desk:
    """A conditioner, its encoder and a tenant with a quota."""

    def __init__(self) -> None:
        self.quota = Quota("a", lambda: 0.0, 100.0)
        self.encoder = Encoder(self.quota)
        store = ConditioningStore(StoreConfig(), lambda: 0.0)
        self.conditioner = Conditioner(store)

    def keep(self, source: Source, tenant: str = "a", caller: str = "", teacher: str = "t") -> Any:
        """A task."""
        access = Access(tenant, None, self.quota if tenant == "a" else None)
        call = Call(0.0, None, caller, tenant, access=access)
        handles = source_handles("digest", source)
        keeping = self.conditioner.keep(teacher, self.encoder, source, handles, call)
        return asyncio.create_task(keeping)


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_only_what_is_not_kept_is_encoded_and_charged() -> None:
    """Each row costs one evaluation; what the same source has twice is one row.

    Breaks with: no `charged` in `_encode`, or the whole source encoded.
    """

    async def scenario() -> None:
        desk = Desk()
        desk.encoder.gate.set()
        for source in (
            Classes((5, 3, 5)),
            Classes((3,)),
            Classes((7, 3, 8, 5)),
            Unconditional(),
            Unconditional(),
        ):
            kept = await desk.keep(source)
            assert set(kept) == set(source_handles("digest", source))
        assert desk.encoder.sources == [Classes((5, 3)), Classes((7, 8)), Unconditional()]
        assert desk.encoder.charged == [2, 2, 1]
        assert desk.quota._level == 100 - 5 and desk.quota.in_flight == 0

    asyncio.run(scenario())


def test_what_another_call_encoded_meanwhile_is_not_encoded_again() -> None:
    """Breaks with: one look at the store, ahead of the wait."""

    async def scenario() -> None:
        desk = Desk()
        calls = [desk.keep(Classes((1, 2))) for _ in range(4)]
        calls.append(desk.keep(Classes((2, 3))))
        await _settle()
        desk.encoder.gate.set()
        await asyncio.gather(*calls)
        assert desk.encoder.sources == [Classes((1, 2)), Classes((3,))]

    asyncio.run(scenario())


def test_faults_are_named_as_the_client_numbers_them() -> None:
    """Breaks with: places within what is encoded."""

    async def scenario() -> None:
        desk = Desk()
        desk.encoder.gate.set()
        await desk.keep(Classes((4,)))
        with pytest.raises(RequestError) as caught:
            await desk.keep(Classes((4, -1, 4, 6, -2)))
        assert caught.value.reason is Reason.INVALID_FIELD
        assert [v.field for v in caught.value.violations] == [
            "source.classes.class_ids[1]",
            "source.classes.class_ids[4]",
        ]
        with pytest.raises(RequestError) as caught:
            await desk.keep(Prompts(("a",)))
        assert [v.field for v in caught.value.violations] == ["source.prompts"]

    asyncio.run(scenario())


def test_one_at_a_time_of_a_tenant_and_teacher_in_order() -> None:
    """Breaks with: no turns, or one turn for all tenants or teachers."""

    async def scenario() -> None:
        desk = Desk()
        first = [desk.keep(Classes((i,))) for i in range(3)]
        await _settle()
        assert desk.encoder.sources == [Classes((0,))]
        others = [
            desk.keep(Classes((10,)), tenant="b"),
            desk.keep(Classes((11,)), teacher="u"),
            desk.keep(Classes((12,)), tenant="", caller="one"),
            desk.keep(Classes((13,)), tenant="", caller="two"),
        ]
        await _settle()
        assert [s.class_ids[0] for s in desk.encoder.sources if isinstance(s, Classes)] == [
            0, 10, 11, 12, 13,
        ]  # fmt: skip
        desk.encoder.gate.set()
        await asyncio.gather(*first, *others)
        assert desk.encoder.sources[-2:] == [Classes((1,)), Classes((2,))]
        assert desk.encoder.most == 5
        await _settle()
        assert not desk.conditioner._turns, "nothing is remembered of those who left"

    asyncio.run(scenario())


def test_those_that_wait_are_bounded() -> None:
    """Breaks with: no bound, or one that counts those that have left."""

    async def scenario() -> None:
        desk = Desk()
        calls = [desk.keep(Classes((i,))) for i in range(1 + MOST_WAITING)]
        await _settle()
        with pytest.raises(RequestError) as caught:
            await asyncio.wait_for(desk.keep(Classes((99,))), 5)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_delay_seconds == 0.5
        calls.pop(3).cancel()
        await _settle()
        calls.append(desk.keep(Classes((100,))))
        desk.encoder.gate.set()
        await asyncio.gather(*calls)
        assert len(desk.encoder.sources) == 1 + MOST_WAITING
        assert Classes((3,)) not in desk.encoder.sources, "its caller had left"

    asyncio.run(scenario())


def test_a_turn_lasts_as_long_as_the_device_is_at_it() -> None:
    """A caller that leaves and comes again does not get further work in.

    Breaks with: a turn that ends with its call.
    """

    async def scenario() -> None:
        desk = Desk()
        for i in range(5):
            call = desk.keep(Classes((i,)))
            await _settle()
            call.cancel()
            await _settle()
        assert desk.encoder.sources == [Classes((0,))] and desk.encoder.present == 1
        last = desk.keep(Classes((9,)))
        desk.encoder.gate.set()
        await asyncio.wait_for(last, 5)
        assert desk.encoder.sources == [Classes((0,)), Classes((9,))]
        await _settle()
        assert not desk.conditioner._turns

    asyncio.run(scenario())


class GatedEncoder(Wrapped):
    """Records what it encodes, and waits in each until its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.encoded: list[int] = []

    def encode(self, source: Source) -> Sequence[Tensors]:
        if isinstance(source, Classes):
            self.encoded += source.class_ids
        assert self.gate.wait(20)
        return super().encode(source)


def _request(*class_ids: int) -> bytes:
    classes = conditioning_pb2.ClassSource(class_ids=class_ids)
    source = conditioning_pb2.ConditioningSource(classes=classes)
    return pb.CreateConditioningRequest(source=source).SerializeToString()


async def _present(server: RunningServer, sources: int) -> None:
    """Until so many are encoded or wait to be."""
    turns = server._front._service._conditioner._turns
    await until(
        lambda: sum(each.present for each in turns.values()) == sources, f"{sources} sources"
    )


def test_a_flood_of_prompts_is_one_ahead_of_another_tenant() -> None:
    """Over the wire, on the one device thread. Breaks with: encoding that does not take turns
    (the other tenant comes last)."""

    async def scenario() -> None:
        teacher = GatedEncoder()
        async with (
            serving({"mixture": teacher}, [tenant("a"), tenant("b")]) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            create = channel.unary_unary(path("CreateConditioning"))
            calls: list[Any] = []
            for of, class_id in (("a", 0), ("a", 1), ("a", 2), ("b", 0)):
                calls.append(create(_request(class_id), metadata=bearer(of), timeout=20))
                await _present(server, len(calls))
            assert teacher.encoded == [0]
            teacher.gate.set()
            await asyncio.gather(*calls)
            assert teacher.encoded == [0, 0, 1, 2]

    asyncio.run(scenario())


def test_quotas_hold_for_conditionings_over_the_wire() -> None:
    """Breaks with: handlers that encode by themselves."""

    async def scenario() -> None:
        tenants = [tenant("a", evaluations_per_second=0.01), tenant("b", evaluations_in_flight=2)]
        async with (
            serving({"mixture": oracle_teacher()}, tenants) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            create = channel.unary_unary(path("CreateConditioning"))
            await create(_request(0), metadata=bearer("a"))
            await create(_request(0), metadata=bearer("a"))
            for of, request, again in (("a", _request(1), True), ("b", _request(0, 1, 2), False)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await create(request, metadata=bearer(of))
                failure = failure_of(caught.value)
                assert failure.reason == Reason.QUOTA_EXCEEDED.value
                assert (failure.retry_delay_seconds is not None) == again
            await create(_request(0, 1), metadata=bearer("b"))

    asyncio.run(scenario())
