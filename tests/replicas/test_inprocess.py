"""Health says SERVING only when the first forwards of the sizes in use are done."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carv_server.config import ServerConfig
from carv_server.replicas.forward import Forward
from carv_server.replicas.preparation import PreparedTeacher
from carv_server.replicas.probe import probe_conditionings, probe_work
from carv_server.replicas.warmup import warm_up
from carv_server.serve import RunningServer
from carv_server.teachers.protocol import Tensors
from tests.server.teachers import GatedTeacher, Wrapped, oracle_teacher

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_not_serving_until_every_size_has_run() -> None:
    async def scenario() -> None:
        teacher = GatedTeacher()
        config = ServerConfig(address="127.0.0.1:0", drain_seconds=5.0)
        server = RunningServer(config, {"mixture": PreparedTeacher(teacher, 8, (1, 2, 8))})
        entering = asyncio.create_task(server.__aenter__())
        assert await asyncio.to_thread(teacher.entered.wait, 10)
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            check = stub.Check
            for name in ("", "carv.v1.TeacherService"):
                request = health_pb2.HealthCheckRequest(service=name)
                assert (await check(request, timeout=10)).status == NOT_SERVING
            assert not entering.done()
            teacher.gate.set()
            await entering
            assert sorted(map(len, teacher.forwards)) == [1, 2, 8]
            reply = await check(health_pb2.HealthCheckRequest(), timeout=10)
            assert reply.status == SERVING
        await server.drain()

    asyncio.run(scenario())


class Broken(Wrapped):
    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        return torch.full_like(z_t, float("nan"))


def test_a_teacher_that_fails_its_warm_up_is_not_served() -> None:
    async def scenario() -> None:
        config = ServerConfig(address="127.0.0.1:0", drain_seconds=5.0)
        with pytest.raises(RuntimeError, match="non-finite noise at timestep"):
            async with RunningServer(config, {"mixture": Broken()}):
                raise AssertionError("it was served")

    asyncio.run(scenario())


def test_the_probe_is_guided_and_covers_all_noise_levels() -> None:
    teacher = oracle_teacher()
    conditionings = probe_conditionings(teacher)
    assert [int(c.tensors["class_label"]) for c in conditionings] == [0, 3]
    work = probe_work(teacher, conditionings, 10)
    assert work.timesteps.tolist() == [50 + 100 * i for i in range(10)]
    assert work.branch_coefficients[:, 0].tolist() == [7.5, -6.5]
    warm_up(Forward(teacher), [4])
