"""A server on this event loop whose replicas are actors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc.aio
import numpy as np

from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import conditioning_pb2, sampling_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.config import ServerConfig
from carv_server.replicas.autoscale import ScalePolicy
from carv_server.replicas.preparation import Preparation
from carv_server.replicas.ray_cluster import RayCluster
from carv_server.replicas.ray_config import RayConfig
from carv_server.replicas.ray_pool import RayPool
from carv_server.replicas.ray_replica import WorkerSettings
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registry import TeacherRegistration
from tests.server.wire import path
from tests.support.until import until as until_within

__all__ = ["CONFIG", "Served", "pool_of", "serving", "simulated_folder", "until"]

_SECONDS = 120.0

# Two small replicas.
CONFIG = RayConfig(
    scale=ScalePolicy(min_replicas=2, max_replicas=2),
    cpus_per_replica=0.25,
    probe_seconds=0.1,
    probe_timeout_seconds=10.0,
    start_seconds=240.0,
    restart_seconds=0.1,
    object_store_bytes=100 << 20,
)


def simulated_folder(folder: Path, launch_seconds: float, row_seconds: float, *shape: int) -> Path:
    content = {
        "event_shape": shape,
        "launch_seconds": launch_seconds,
        "row_seconds": row_seconds,
    }
    (folder / "simulated.json").write_text(json.dumps(content))
    return folder


def pool_of(
    cluster: RayCluster,
    folder: Path,
    config: RayConfig,
    budget: int | None,
    sha256: Mapping[str, str] = MappingProxyType({}),
) -> RayPool:
    registration = TeacherRegistration("teacher", folder, sha256=sha256)
    settings = WorkerSettings(registration, "cpu", "float32", 1, Preparation(budget), warm_up=False)
    return RayPool(cluster, settings, config)


async def until(condition: Callable[[], bool], what: str) -> None:
    """For as long as processes may take to start."""
    await until_within(condition, what, _SECONDS)


@dataclass(frozen=True)
class Served:
    """A raw client: unconditional requests, or of class 0 where ``handle`` says so."""

    server: RunningServer
    channel: grpc.aio.Channel
    handle: str

    async def estimate(
        self, seed: int, *, draws: int, shape: tuple[int, ...], renders: int = 1
    ) -> tuple[np.ndarray, bytes, int]:
        """Gradient, draws and evaluations spent."""
        x = np.random.default_rng(seed).normal(size=(renders, *shape)).astype(np.float32)
        request = pb.EstimateGradientRequest(latents=encode_tensor(x), seed=seed)
        request.objective.branches.add(conditionings=[self.handle]).coefficient.constant = 1.0
        request.objective.noise_coefficient.constant = -1.0
        request.sampling.draws = draws
        # Of the past nothing is learned, so that the order of the requests is no matter.
        request.sampling.proposal = sampling_pb2.PROPOSAL_PRIOR
        request.sampling.control_variate = sampling_pb2.CONTROL_VARIATE_NONE
        request.return_draws = True
        call: Any = self.channel.unary_unary(path("EstimateGradient"))(
            request.SerializeToString(), timeout=_SECONDS
        )
        reply = pb.EstimateGradientResponse.FromString(await call)
        reply.draw_table.ClearField("norms")  # of the forward, and so of the batch's rounding
        draws_made = reply.draw_table.SerializeToString(deterministic=True)
        return decode_tensor(reply.gradient), draws_made, reply.evaluations_spent


@asynccontextmanager
async def serving(
    budget: int,
    *,
    pool: RayPool | None = None,
    teacher: Teacher | None = None,
    class_id: int | None = None,
) -> AsyncIterator[Served]:
    """With a started pool, or a teacher in this process."""
    config = ServerConfig(
        address="127.0.0.1:0",
        drain_seconds=10.0,
        scheduler=SchedulerConfig(evaluation_budget=budget),
    )
    teachers = {} if teacher is None else {"teacher": teacher}
    pools = {} if pool is None else {"teacher": pool}
    source = conditioning_pb2.ConditioningSource()
    if class_id is None:
        source.unconditional.SetInParent()
    else:
        source.classes.class_ids.append(class_id)
    async with (
        RunningServer(config, teachers, pools) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        request = pb.CreateConditioningRequest(source=source).SerializeToString()
        reply: Any = await channel.unary_unary(path("CreateConditioning"))(request, timeout=30)
        created = pb.CreateConditioningResponse.FromString(reply)
        yield Served(server, channel, created.conditionings[0].handle)
