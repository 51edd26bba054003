"""grpc.health.v1 answers within a second under full load; reflection lists the services."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from carv_client import TeacherClient
from tests.server.teachers import BusyTeacher, running
from tests.server.wire import create_async, estimate_request, health_stub, latents, path

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "carv.v1.TeacherService"
CLIENTS, LOAD_SECONDS = 12, 2.0
# A machine that pauses delays a probe or two as well; a loop that is blocked delays most of them.
PAUSE_SECONDS = 5.0


@pytest.mark.parametrize("service", ["", SERVICE])
def test_check_and_watch_say_serving(channel: grpc.Channel, service: str) -> None:
    stub = health_stub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert stub.Check(request, timeout=10).status == SERVING
    watch = stub.Watch(request, timeout=10)
    assert next(iter(watch)).status == SERVING
    watch.cancel()


def test_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    stub = health_stub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]


def test_health_under_a_storm_of_requests(
    analytic_server: str, client: TeacherClient, channel: grpc.Channel
) -> None:
    """Twelve clients keep the event loop, the workers and the device thread busy: light forwards,
    so that everything else is under the greatest load."""
    conditioning = client.create_conditioning(class_id=0)
    over, answered = threading.Event(), [0] * CLIENTS

    def load(i: int) -> None:
        with TeacherClient(analytic_server) as own:
            while not over.is_set():
                own.estimate_gradient(latents(32, i), conditioning, draws=16, seed=i)
                answered[i] += 1

    threads = [threading.Thread(target=load, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    stub, waits = health_stub(channel), list[float]()
    end = time.perf_counter() + LOAD_SECONDS
    while time.perf_counter() < end or len(waits) < 20:
        start = time.perf_counter()
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
        waits.append(time.perf_counter() - start)
    over.set()
    for thread in threads:
        thread.join()
    assert np.quantile(waits, 0.9) < 1.0 and max(waits) < PAUSE_SECONDS
    assert min(answered) >= 1, "no load, no test"


def test_health_while_the_device_is_busy() -> None:
    """Forwards of 0.7 s that never rest: the loop has to answer beside them. Broken by forwards on
    the event loop."""

    async def scenario() -> None:
        async with running(BusyTeacher(0.7)) as (_, channel):
            data = estimate_request([await create_async(channel)] * 2, 16, 8).SerializeToString()
            calls = [
                channel.unary_unary(path("EstimateGradient"))(data, timeout=60) for _ in range(8)
            ]
            stub, waits = health_stub(channel), list[float]()
            end = time.perf_counter() + LOAD_SECONDS
            while time.perf_counter() < end or len(waits) < 5:
                start = time.perf_counter()
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert reply.status == SERVING
                waits.append(time.perf_counter() - start)
                await asyncio.sleep(0.02)
            assert np.median(waits) < 0.2 and max(waits) < PAUSE_SECONDS
            assert not all(call.done() for call in calls), "no load, no test"
            for call in calls:
                call.cancel()

    asyncio.run(scenario())


def test_an_open_watch_hears_of_the_drain_and_does_not_hold_it() -> None:
    async def scenario() -> None:
        async with running(BusyTeacher(0.0)) as (server, channel):
            watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == SERVING
            start = time.perf_counter()
            drain = asyncio.create_task(server.drain())
            assert (await watch.read()).status == NOT_SERVING
            await drain
            assert time.perf_counter() - start < 5.0, "drain_seconds is 10"

    asyncio.run(scenario())


def test_reflection_lists_the_services_and_knows_their_files(channel: grpc.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    listed, file = stub.ServerReflectionInfo(iter(requests), timeout=10)
    assert {service.name for service in listed.list_services_response.service} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert b"EstimateGradient" in b"".join(file.file_descriptor_response.file_descriptor_proto)
