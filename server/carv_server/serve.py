"""The composition root: configuration to a running server, health, and the drain."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from carv_server.conditioning import ConditioningStore
from carv_server.config import ServerConfig
from carv_server.ending import shut_down
from carv_server.front import Front
from carv_server.history import DrawHistories
from carv_server.host import settle_heap
from carv_server.latents import LatentStore
from carv_server.pools import start_pools, waiting_seconds
from carv_server.prepare import PreparedTeacher, as_prepared
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.protocol import Encoder
from carv_server.replicas.ray_pool import RayPool
from carv_server.scheduler import Scheduler
from carv_server.service import ServedTeacher, TeacherService
from carv_server.teachers.protocol import Teacher

__all__ = ["RunningServer", "serve_until_signalled"]

_log = logging.getLogger(__name__)

_WORKERS = 2
# So far above the limit gRPC itself refuses a message, with no rich status, before it is whole in
# memory; also where it is small, and grows as it is decompressed.
_HARD_LIMIT_MARGIN = 1 << 20
_MAX_METADATA_BYTES = 64 * 1024
_LAST_TASKS_SECONDS = 1.0
# All calls but health Watches have ended by then, or are told that the server is draining.
_STOP_SECONDS = 0.5
# For a forward that nobody waits for any more; it cannot be interrupted.
_LAST_FORWARD_SECONDS = 2.0


class RunningServer:
    """A server on the current event loop; an async context manager that drains on exit.

    Args:
        teachers: served by one replica each, in this process.
        pools: started, and each serving its teacher; the caller stops them afterwards.

    Attributes:
        address: host:port that it listens on.
        stuck: whether a forward still ran when the server had stopped; interpreters wait for
            such a thread before they end.
    """

    def __init__(
        self,
        config: ServerConfig,
        teachers: Mapping[str, PreparedTeacher | Teacher],
        pools: Mapping[str, RayPool] | None = None,
    ) -> None:
        self._config = config
        # One thread for the device: forwards of all teachers take turns on it.
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._staging_thread = ThreadPoolExecutor(2, thread_name_prefix="staging")
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="messages")
        self._served: dict[str, ServedTeacher] = {}
        self._cold: list[tuple[InProcessReplica, Sequence[int]]] = []
        for teacher_id, given in teachers.items():
            prepared = as_prepared(given, config)
            teacher, budget = prepared.teacher, prepared.evaluation_budget
            replica = InProcessReplica(teacher, self._device_thread, budget, self._staging_thread)
            self._cold.append((replica, prepared.warm_sizes))
            limits = replace(config.scheduler, evaluation_budget=budget)
            scheduler = Scheduler([replica], limits, time.monotonic)
            self._served[teacher_id] = self._serve(teacher_id, replica, scheduler)
        self._pools = pools or {}
        for teacher_id, pool in self._pools.items():
            limits = replace(config.scheduler, evaluation_budget=pool.evaluation_budget)
            scheduler = Scheduler([], limits, time.monotonic)
            self._served[teacher_id] = self._serve(teacher_id, pool, scheduler)
        service = TeacherService(
            self._served,
            ConditioningStore(config.store, time.time),
            config.limits,
            config.max_message_bytes,
            lambda: secrets.randbits(64),
            self._workers,
        )
        self._front = Front(
            service,
            config.max_message_bytes,
            self._workers,
            time.monotonic,
            config.limits.max_stream_requests,
        )
        self._hurry = asyncio.Event()
        # The module gains its `aio` attribute at import, out of a type checker's sight.
        self._health: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._server = grpc.aio.server(options=_channel_options(config.max_message_bytes))
        self.address = ""
        self.stuck = False

    def _serve(self, teacher_id: str, encoder: Encoder, scheduler: Scheduler) -> ServedTeacher:
        config = self._config
        histories = DrawHistories(encoder.description.schedule, config.history)
        latents = LatentStore(config.latents, time.time)
        return ServedTeacher(teacher_id, [encoder], scheduler, histories, latents)

    async def __aenter__(self) -> RunningServer:
        self._server.add_generic_rpc_handlers((self._front.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (self._front.service_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        port = self._server.add_insecure_port(self._config.address)
        self.address = f"{self._config.address.rpartition(':')[0]}:{port}"
        for teacher in self._served.values():
            teacher.scheduler.start()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        for teacher_id, pool in self._pools.items():
            scheduler = self._served[teacher_id].scheduler
            pool.attach(scheduler, waiting_seconds(scheduler))
        await self._server.start()
        try:
            await self._warm_up()
        except BaseException:
            await self.drain()
            raise
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self

    async def _warm_up(self) -> None:
        """Health already answers, so that a slow start is no dead server."""
        if self._config.warm_up:
            for replica, sizes in self._cold:
                await replica.warm_up(sizes)

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
        await self._server.stop(_STOP_SECONDS)
        executors = (self._device_thread, self._staging_thread, self._workers)
        self.stuck = not await shut_down(executors, _LAST_FORWARD_SECONDS)
        if self.stuck:
            _log.warning("a forward still runs; it is left")

    def hurry(self) -> None:
        """Let a drain wait for calls no longer."""
        self._hurry.set()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", self._front.service_name):
            await self._health.set(name, status)


async def serve_until_signalled(
    config: ServerConfig,
    teachers: Mapping[str, PreparedTeacher | Teacher],
    pools: Mapping[str, RayPool] | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the drain; one ahead of
    readiness ends the warm-up.

    Args:
        pools: started here, ahead of readiness, and stopped at the end.

    Returns:
        Whether all threads have ended; False where one runs a forward that nobody waits for.

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
        if await start_pools(pools, stack, signalled):
            server = RunningServer(config, teachers, pools)
            running.append(server)
            if await _entered(server, stack, signalled):
                settle_heap()
                _log.info("serving %s on %s", ", ".join([*teachers, *pools]), server.address)
                await signalled.wait()
    # gRPC's tasks end a little after its server; cut off by the loop's end they would log errors.
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    if rest:
        await asyncio.wait(rest, timeout=_LAST_TASKS_SECONDS)
    _log.info("stopped")
    return not any(server.stuck for server in running)


async def _entered(server: RunningServer, stack: AsyncExitStack, signalled: asyncio.Event) -> bool:
    """Start a server, to be drained by the stack; False where a signal came first."""
    entering = asyncio.create_task(stack.enter_async_context(server))
    stop = asyncio.create_task(signalled.wait())
    await asyncio.wait({entering, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not entering.done():
        server.hurry()
        entering.cancel()
        await asyncio.wait({entering})
        if entering.cancelled():
            return False
    await entering
    return not signalled.is_set()


def _channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    hard_limit = max_message_bytes + min(max_message_bytes, _HARD_LIMIT_MARGIN)
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
