"""Tenants share nothing but the device: handles, what is learned, teachers, and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from carv.errors import Reason
from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import AsyncTeacherClient, NotFoundError, PermissionDeniedError
from carv_server.history import DrawHistories, HistoryConfig, HistoryKey
from carv_server.store import ExpiringStore, StoreConfig
from carv_server.teachers.protocol import Source, Tensors
from carv_server.tenants.tenant import Tenant
from tests.server.teachers import Wrapped
from tests.server.wire import estimate_request, failure_of, latents, path, predict_request
from tests.support.oracle import oracle_schedule
from tests.support.tenants import bearer, serving, tenant, token_of

TENANTS: Sequence[Tenant] = [tenant("a"), tenant("b")]


class Counting(Wrapped):
    """Counts what it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def encode(self, source: Source) -> Sequence[Tensors]:
        self.encoded += 1
        return super().encode(source)


async def _fails(channel: grpc.aio.Channel, method: str, request, of: str) -> bytes:
    """The whole status of a call that fails; both calls bear one name, which it repeats."""
    call = channel.unary_unary(path(method))
    metadata = (*bearer(of), ("x-request-id", "one"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request.SerializeToString(), metadata=metadata, timeout=10)
    failure = failure_of(caught.value)
    assert failure.code is grpc.StatusCode.NOT_FOUND
    details: dict[str, Any] = dict(caught.value.trailing_metadata() or ())
    return details["grpc-status-details-bin"]


async def _create(channel: grpc.aio.Channel, of: str, class_id: int = 0) -> str:
    source = conditioning_pb2.ConditioningSource()
    source.classes.class_ids.append(class_id)
    request = pb.CreateConditioningRequest(source=source).SerializeToString()
    call = channel.unary_unary(path("CreateConditioning"))
    reply = await call(request, metadata=bearer(of))
    return pb.CreateConditioningResponse.FromString(reply).conditionings[0].handle


async def _keep(channel: grpc.aio.Channel, of: str) -> str:
    request = pb.CreateLatentsRequest(latents=encode_tensor(latents(1))).SerializeToString()
    reply = await channel.unary_unary(path("CreateLatents"))(request, metadata=bearer(of))
    return pb.CreateLatentsResponse.FromString(reply).latents.handle


def test_a_handle_of_another_tenant_is_one_that_never_was() -> None:
    """The same bytes of status, where another tenant holds the handle and where nobody does, for
    every field that takes one.

    Breaks with: `tenant` left out of `ConditioningStore.get` or of `LatentStore.get` (no
    failure), or an error that says why.
    """

    async def scenario() -> None:
        async with (
            serving({"mixture": Counting()}, TENANTS) as held,
            serving({"mixture": Counting()}, TENANTS) as empty,
            grpc.aio.insecure_channel(held.address) as there,
            grpc.aio.insecure_channel(empty.address) as nowhere,
        ):
            handle, kept = await _create(there, "a"), await _keep(there, "a")
            own = [await _create(channel, "b", 1) for channel in (there, nowhere)]
            assert own[0] == own[1]
            blend = pb.CreateConditioningRequest()
            blend.source.blend.handles.append(handle)
            blend.source.blend.weights.append(1.0)
            by_handle = estimate_request([own[0]], 1, 2)
            by_handle.latents_handle = kept
            requests = [
                ("EstimateGradient", estimate_request([handle])),
                ("EstimateGradient", by_handle),
                ("PredictNoise", predict_request(handle, [3])),
                ("CreateConditioning", blend),
            ]
            for method, request in requests:
                answers = [await _fails(at, method, request, "b") for at in (there, nowhere)]
                assert answers[0] == answers[1], method
            # What is private is there for its own tenant.
            call = there.unary_unary(path("EstimateGradient"))
            mine = estimate_request([handle], 1, 2)
            mine.latents_handle = kept
            await call(mine.SerializeToString(), metadata=bearer("a"))

    asyncio.run(scenario())


def test_nothing_is_encoded_for_two_tenants_at_once() -> None:
    """Whether another tenant has a prompt must not show in the time that it takes.

    Breaks with: the tenant left out of `Conditioner.keep`, or out of the name by which
    replicas keep conditionings.
    """
    teacher = Counting()

    async def scenario() -> None:
        async with (
            serving({"mixture": teacher}, TENANTS) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            for of, encoded in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
                handle = await _create(channel, of)
                assert teacher.encoded == encoded
            names = {
                found.handle
                for of in "ab"
                if (found := server._service._store.get(handle, "mixture", of)) is not None
            }
            assert len(names) == 2
            data = estimate_request([handle]).SerializeToString()
            for of in "ab":
                await channel.unary_unary(path("EstimateGradient"))(data, metadata=bearer(of))
            contexts = [server._service._contexts.get((of, "mixture")) for of in "ab"]
            one, other = (context and context.objectives for context in contexts)
            assert one is not None and other is not None and one is not other
            keys = server._served["mixture"].histories._entries
            assert {key.tenant for key in keys} == {"a", "b"}

    asyncio.run(scenario())


def test_teachers_of_others_are_not_there() -> None:
    """Listed are those that a tenant may use; another one is refused in the same words whether it
    exists or not.

    Breaks with: `allows` left out of `list_teachers` or of `_teacher`, or NOT_FOUND for one of
    them.
    """

    async def scenario() -> None:
        tenants = [tenant("a", teachers=frozenset({"two"})), tenant("b"), tenant("c")]
        none = tenant("d", teachers=frozenset())
        teachers = {"one": Counting(), "two": Counting(), "three": Counting()}
        async with serving(teachers, [*tenants, none]) as server:
            async with AsyncTeacherClient(server.address, token=token_of("a")) as client:
                assert [t.id for t in await client.list_teachers()] == ["two"]
                assert (await client.get_teacher()).id == "two", "the first of its own"
                said: set[str] = set()
                for name in ("one", "none"):
                    with pytest.raises(PermissionDeniedError) as caught:
                        await client.get_teacher(name)
                    assert caught.value.reason == Reason.TEACHER_NOT_ALLOWED.value
                    said.add(str(caught.value).replace(name, "?"))
                    with pytest.raises(PermissionDeniedError):
                        await client.create_conditioning(class_id=0, teacher=name)
                assert len(said) == 1 and "one" not in said.pop()
            async with AsyncTeacherClient(server.address, token=token_of("b")) as client:
                assert len(await client.list_teachers()) == 3
                with pytest.raises(NotFoundError):
                    await client.get_teacher("none")
            async with AsyncTeacherClient(server.address, token=token_of("d")) as client:
                assert await client.list_teachers() == []
                with pytest.raises(PermissionDeniedError):
                    await client.get_teacher()

    asyncio.run(scenario())


def test_a_flood_of_handles_takes_its_own_tenants_room() -> None:
    """Breaks with: no share for an owner, or eviction of the least recently used of all."""
    store = ExpiringStore[int, int](StoreConfig(max_entries=10, owner_share=0.5), lambda: 0.0)
    store.put(0, 0, 1, "quiet")
    for key in range(100):
        store.put(key, key, 1, "flood")
    assert store.get(0, "quiet") == 0
    assert [key for key in range(100) if store.get(key, "flood") is not None] == [*range(95, 100)]
    for key in range(100):
        store.put(key, key, 1, "second")
        store.put(key, key, 1, "third")
    assert store.get(0, "quiet") == 0
    left = {
        owner: sum(store.get(key, owner) is not None for key in range(100))
        for owner in ("flood", "second", "third")
    }
    assert sum(left.values()) == 9 and max(left.values()) - min(left.values()) <= 1


def test_bytes_of_all_owners_are_bounded() -> None:
    config = StoreConfig(max_entries=100, max_bytes=100, owner_share=0.6)
    store = ExpiringStore[int, int](config, lambda: 0.0)
    for owner in "xyz":
        for key in range(10):
            store.put(key, key, 10, owner)
    counts = [sum(store.get(key, owner) is not None for key in range(10)) for owner in "xyz"]
    assert sum(counts) == 10 and max(counts) - min(counts) <= 1
    store.put(0, 0, 1000, "large")
    assert store.get(0, "large") == 0, "the newest is kept whatever its size"
    assert all(store.get(key, owner) is None for key in range(10) for owner in "xyz")


def test_histories_of_a_flood_are_the_first_to_go() -> None:
    """Breaks with: the least recently used of all tenants."""
    histories = DrawHistories(oracle_schedule(), HistoryConfig(max_histories=10))
    quiet = HistoryKey("quiet", b"", "")
    histories.recall(quiet, 0)
    for i in range(100):
        histories.recall(HistoryKey("flood", b"", str(i)), 0)
    assert len(histories) == 10
    assert quiet in histories._entries
