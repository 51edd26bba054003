"""The composition root: configuration to a running server, health, and the drain."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import Any

import grpc.aio
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from carv_server.conditioning import ConditioningStore
from carv_server.config import ServerConfig
from carv_server.front import Front
from carv_server.history import DrawHistories
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.ray_cluster import open_cluster
from carv_server.replicas.ray_pool import RayPool
from carv_server.replicas.ray_replica import WorkerSettings
from carv_server.scheduler import Scheduler
from carv_server.service import ServedTeacher, TeacherService
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registry import TeacherRegistration, load_teacher

__all__ = ["RunningServer", "load_teachers", "ray_pools", "serve_until_signalled"]

_log = logging.getLogger(__name__)

_WORKERS = 2
# Above this multiple of the limit gRPC itself refuses the message, with no rich status.
_HARD_LIMIT_FACTOR = 2
_MAX_METADATA_BYTES = 64 * 1024
_LAST_TASKS_SECONDS = 1.0


def load_teachers(config: ServerConfig) -> dict[str, Teacher]:
    """Load every registered teacher onto the configured device, by id.

    Raises:
        TeacherFolderError: a folder cannot be served.
        ValueError: an id is registered twice, or the device is not there.
    """
    device = _device(config.device)
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    teachers: dict[str, Teacher] = {}
    for registration in _distinct(config.teachers):
        started = time.perf_counter()
        teacher = load_teacher(registration, device=device, dtype=getattr(torch, config.dtype))
        teachers[registration.id] = teacher
        _log.info(
            "teacher %s: %s %s on %s, digest %s, %.1f s",
            registration.id,
            teacher.description.family,
            list(teacher.description.event_shape),
            device,
            teacher.description.digest[:12],
            time.perf_counter() - started,
        )
    return teachers


@contextmanager
def ray_pools(config: ServerConfig) -> Iterator[dict[str, RayPool]]:
    """A pool of Ray replicas for every registered teacher, by id, not started yet; connected to the
    cluster inside.

    Raises:
        ClusterError: Ray is not installed, or the cluster cannot be had.
        ValueError: an id is registered twice, or the device is not Ray's to choose from.
    """
    assert config.ray is not None
    registrations = _distinct(config.teachers)
    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {config.device}: Ray chooses the GPU; say auto, cpu or cuda")
    cluster = open_cluster(config.ray, len(registrations))
    try:
        yield {
            registration.id: RayPool(
                cluster,
                WorkerSettings(
                    registration,
                    device=config.device,
                    dtype=config.dtype,
                    threads=config.torch_threads or max(1, int(config.ray.cpus_per_replica)),
                    max_rows=config.scheduler.evaluation_budget,
                ),
                config.ray,
            )
            for registration in registrations
        }
    finally:
        cluster.close()


def _distinct(registrations: Sequence[TeacherRegistration]) -> Sequence[TeacherRegistration]:
    ids = [registration.id for registration in registrations]
    for teacher_id in ids:
        if ids.count(teacher_id) > 1:
            raise ValueError(f"teacher id {teacher_id!r} is registered twice")
    return registrations


class RunningServer:
    """A server on the current event loop; an async context manager that drains on exit.

    Args:
        teachers: served by one replica each, in this process.
        pools: started, and each serving its teacher; the caller stops them afterwards.

    Attributes:
        address: host:port that it listens on.
    """

    def __init__(
        self,
        config: ServerConfig,
        teachers: Mapping[str, Teacher],
        pools: Mapping[str, RayPool] | None = None,
    ) -> None:
        self._config = config
        # One thread for the device: forwards of all teachers take turns on it.
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="messages")
        self._served: dict[str, ServedTeacher] = {}
        for teacher_id, teacher in teachers.items():
            replica = InProcessReplica(
                teacher, self._device_thread, config.scheduler.evaluation_budget
            )
            scheduler = Scheduler([replica], config.scheduler, time.monotonic)
            histories = DrawHistories(teacher.description.schedule, config.history)
            self._served[teacher_id] = ServedTeacher(teacher_id, [replica], scheduler, histories)
        self._pools = pools or {}
        for teacher_id, pool in self._pools.items():
            scheduler = Scheduler([], config.scheduler, time.monotonic)
            histories = DrawHistories(pool.description.schedule, config.history)
            self._served[teacher_id] = ServedTeacher(teacher_id, [pool], scheduler, histories)
        service = TeacherService(
            self._served,
            ConditioningStore(config.store, time.time),
            config.limits,
            config.max_message_bytes,
            lambda: secrets.randbits(64),
            self._workers,
        )
        self._front = Front(service, config.max_message_bytes, self._workers, time.monotonic)
        self._hurry = asyncio.Event()
        # The module gains its `aio` attribute at import, out of a type checker's sight.
        self._health: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._server = grpc.aio.server(options=_channel_options(config.max_message_bytes))
        self.address = ""

    async def __aenter__(self) -> RunningServer:
        self._server.add_generic_rpc_handlers((self._front.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (self._front.service_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        port = self._server.add_insecure_port(self._config.address)
        self.address = f"{self._config.address.rpartition(':')[0]}:{port}"
        for teacher in self._served.values():
            teacher.scheduler.start()
        for teacher_id, pool in self._pools.items():
            scheduler = self._served[teacher_id].scheduler
            pool.attach(scheduler, _waiting_seconds(scheduler))
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.drain()

    async def drain(self) -> None:
        """Refuse new calls, let in-flight ones finish within the drain time or until
        ``hurry``, then stop; what is left is answered with DRAINING."""
        # Health first: load balancers turn away before calls are refused.
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._front.drain()
        idle = asyncio.create_task(self._front.wait_idle())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait(
            {idle, hurry},
            timeout=self._config.drain_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not idle.done():
            _log.warning("stopping with calls in flight")
        for task in (idle, hurry):
            task.cancel()
        for teacher in self._served.values():
            await teacher.scheduler.stop()
        # An open health Watch would hold stop() for its whole grace.
        await self._server.stop(1.0)
        self._device_thread.shutdown(wait=True, cancel_futures=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def hurry(self) -> None:
        """Let a drain wait for calls no longer."""
        self._hurry.set()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", self._front.service_name):
            await self._health.set(name, status)


async def serve_until_signalled(
    config: ServerConfig,
    teachers: Mapping[str, Teacher],
    pools: Mapping[str, RayPool] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the drain.

    Args:
        pools: started here, ahead of readiness, and stopped at the end.

    Raises:
        ReplicaStartError: a pool cannot be started.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    running: list[RunningServer] = []

    def on_signal(name: str) -> None:
        if signalled.is_set():
            _log.info("%s: stopping now", name)
            for server in running:
                server.hurry()
        else:
            _log.info("%s: draining", name)
            signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    async with AsyncExitStack() as stack:
        pools = pools or {}
        if await _started(pools, stack, signalled):
            server = RunningServer(config, teachers, pools)
            running.append(server)
            async with server:
                _log.info("serving %s on %s", ", ".join([*teachers, *pools]), server.address)
                await signalled.wait()
    # gRPC's tasks end a little after its server; cut off by the loop's end they would log errors.
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    if rest:
        await asyncio.wait(rest, timeout=_LAST_TASKS_SECONDS)
    _log.info("stopped")


async def _started(
    pools: Mapping[str, RayPool], stack: AsyncExitStack, signalled: asyncio.Event
) -> bool:
    """Start pools, to be stopped by the stack; False where a signal came first."""
    stop = asyncio.create_task(signalled.wait())
    for pool in pools.values():
        stack.push_async_callback(pool.stop)
        start = asyncio.create_task(pool.start())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            await asyncio.wait({start})
            return False
        await start
    stop.cancel()
    return True


def _waiting_seconds(scheduler: Scheduler) -> Callable[[], float]:
    """Work in the queue, in seconds of one replica."""
    return lambda: scheduler.waiting_evaluations * scheduler.evaluation_seconds


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name}: this torch sees no CUDA device")
    return device


def _channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    hard_limit = _HARD_LIMIT_FACTOR * max_message_bytes
    return [
        ("grpc.max_receive_message_length", hard_limit),
        ("grpc.max_send_message_length", hard_limit),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        # Two servers on one port would share calls silently.
        ("grpc.so_reuseport", 0),
        # Clients may ping an idle connection every 10 s to notice a dead server.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
