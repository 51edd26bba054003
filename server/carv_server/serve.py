"""The composition root: configuration to a running server, health, and the drain."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
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
from carv_server.ending import shut_down, signals_heard
from carv_server.front import Front
from carv_server.guard import Guard
from carv_server.history import DrawHistories
from carv_server.host import settle_heap
from carv_server.latents import LatentStore
from carv_server.listeners import Listeners, channel_options
from carv_server.observability.observability import Observability
from carv_server.observability.watched import Quota
from carv_server.pools import start_pools, waiting_seconds
from carv_server.prepare import as_prepared
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.preparation import PreparedTeacher
from carv_server.replicas.protocol import Encoder, Replica
from carv_server.replicas.ray_pool import RayPool
from carv_server.sampling.seeds import Seeds
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.service import ServedTeacher, TeacherService
from carv_server.settings.addresses import is_public
from carv_server.settings.tenants import load_tenants
from carv_server.teachers.protocol import Teacher
from carv_server.tenants.reload import Watcher
from carv_server.tenants.tenancy import Tenancy, TenancyConfig
from carv_server.tenants.tenant import Tenant

__all__ = ["RunningServer", "serve_until_signalled"]

_log = logging.getLogger(__name__)

_WORKERS = 2
# Calls at once on one connection, whose messages may all be in memory; far above any honest load,
# since a client's further calls wait for a place by themselves.
_MOST_CALLS_OF_A_CONNECTION = 1024
_LAST_TASKS_SECONDS = 1.0
# For a forward that nobody waits for any more; it cannot be interrupted.
_LAST_FORWARD_SECONDS = 2.0


class RunningServer:
    """A server on the current event loop; an async context manager that drains on exit.

    Args:
        teachers: served by one replica each, in this process.
        pools: started, and each serving its teacher; the caller stops them afterwards.

    Attributes:
        address: host:port that it listens on.
        health_address: likewise, for health alone; "" where there is no such port.
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
        self._tenancy = self._tenants({*teachers, *(pools or {})})
        if self._tenancy is not None:
            weights = replace(config.scheduler, tenant_weights=self._tenancy.weights)
            self._config = config = replace(config, scheduler=weights)
        # One thread for the device: forwards of all teachers take turns on it.
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._staging_thread = ThreadPoolExecutor(
            2 * max(1, len(teachers)), thread_name_prefix="staging"
        )
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="messages")
        self.observability = Observability(
            config.metrics,
            config.tracing,
            config.scheduler.tenant_weights,
            self._quota,
            clock=time.monotonic,
        )
        seeds = Seeds(functools.partial(random.Random().getrandbits, 64))
        self._served: dict[str, ServedTeacher] = {}
        self._cold: list[tuple[InProcessReplica, Sequence[int]]] = []
        for teacher_id, given in teachers.items():
            prepared = as_prepared(given, config)
            teacher, budget = prepared.teacher, prepared.evaluation_budget
            replica = InProcessReplica(
                teacher, self._device_thread, budget, self._staging_thread, seeds
            )
            self._cold.append((replica, prepared.warm_sizes))
            limits = replace(config.scheduler, evaluation_budget=budget)
            device = f"{teacher.device.type}:{teacher.device.index or 0}"
            self._served[teacher_id] = self._serve(teacher_id, replica, limits, [replica], device)
        self._pools = pools or {}
        for teacher_id, pool in self._pools.items():
            limits = replace(config.scheduler, evaluation_budget=pool.evaluation_budget)
            self._served[teacher_id] = self._serve(teacher_id, pool, limits, [])
        conditionings = ConditioningStore(config.store, time.time)
        self.observability.watch_conditionings(conditionings)
        self._service = service = TeacherService(
            self._served,
            conditionings,
            config.limits,
            config.max_message_bytes,
            seeds.take,
            self._workers,
        )
        self._front = Front(
            service,
            config.max_message_bytes,
            self._workers,
            time.monotonic,
            config.limits.max_stream_requests,
            self.observability,
        )
        self._hurry = asyncio.Event()
        # The module gains its `aio` attribute at import, out of a type checker's sight.
        self._health: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._server = grpc.aio.server(
            options=[
                *channel_options(
                    config.max_message_bytes,
                    config.connection_age_seconds,
                    config.connection_grace_seconds,
                ),
                ("grpc.max_concurrent_streams", _MOST_CALLS_OF_A_CONNECTION),
            ],
            interceptors=()
            if self._tenancy is None
            else (Guard(self._tenancy, self.observability.denied),),
        )
        self._listeners = Listeners(self._server, self._health)
        self.address = self.health_address = ""
        self.stuck = False

    def _serve(
        self,
        teacher_id: str,
        encoder: Encoder,
        limits: SchedulerConfig,
        replicas: Sequence[Replica],
        device: str = "",
    ) -> ServedTeacher:
        config, watchers = self._config, self.observability
        observe = watchers.counts(teacher_id).on_microbatch
        scheduler = Scheduler(replicas, limits, time.monotonic, observe)
        histories = DrawHistories(encoder.description.schedule, config.history)
        latents = LatentStore(config.latents, time.time)
        registered = [teacher for teacher in config.teachers if teacher.id == teacher_id]
        own = replace(config.limits, **(registered[0].limits if registered else {}))

        def wanted() -> int:
            pool = self._pools.get(teacher_id)
            return 1 if pool is None else pool.target

        watchers.watch(teacher_id, scheduler, limits, histories, latents, encoder, wanted, device)
        return ServedTeacher(teacher_id, [encoder], scheduler, histories, latents, own)

    async def __aenter__(self) -> RunningServer:
        config = self._config
        self._server.add_generic_rpc_handlers((self._front.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (self._front.service_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._listeners.open(config.address, config.health_address, config.tls)
        self.address, self.health_address = self._listeners.addresses
        if config.tenancy is not None and config.tenancy.file is not None:
            self._listeners.watch(self._tenants_file(config.tenancy), config.tenancy.reload_seconds)
        await self.observability.start()
        for teacher in self._served.values():
            teacher.scheduler.start()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        for teacher_id, pool in self._pools.items():
            scheduler = self._served[teacher_id].scheduler
            pool.attach(scheduler, waiting_seconds(scheduler))
        await self._listeners.start()
        try:
            await self._warm_up()
        except BaseException:
            await self.drain()
            raise
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self.observability.set_state(ready=True)
        return self

    def _tenants(self, served: set[str]) -> Tenancy | None:
        if self._config.tenancy is None:
            return None
        allowed = {t.id: t.tenants for t in self._config.teachers}
        return Tenancy(
            self._config.tenancy.tenants,
            {teacher: allowed.get(teacher) for teacher in served},
            time.monotonic,
        )

    def _quota(self, tenant: str) -> Quota | None:
        found = None if self._tenancy is None else self._tenancy.tenants.get(tenant)
        if found is None:
            return None
        return Quota(found.evaluations_per_second, found.evaluations_in_flight)

    def _tenants_file(self, tenancy: TenancyConfig) -> Watcher[tuple[Tenant, ...]]:
        file, served = tenancy.file, tuple(self._served)
        assert file is not None
        return Watcher(
            "tenants",
            [file],
            tenancy.tenants,
            lambda: load_tenants(file, served),
            self._take_tenants,
        )

    def _take_tenants(self, tenants: Sequence[Tenant]) -> None:
        assert self._tenancy is not None
        self._tenancy.replace(tenants)
        self.observability.know_tenants(tenant.id for tenant in tenants)
        for teacher in self._served.values():
            teacher.scheduler.reweigh()

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
        self.observability.set_state(ready=False, draining=True)
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
        await self._listeners.stop()
        await self.observability.stop()
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
    for heard in signals_heard():
        on_signal(signal.Signals(heard).name)
    async with AsyncExitStack() as stack:
        pools = pools or {}
        if await start_pools(pools, stack, signalled):
            server = RunningServer(config, teachers, pools)
            running.append(server)
            if await _entered(server, stack, signalled):
                settle_heap()
                if server.health_address:
                    _log.info("health alone, in plaintext, on %s", server.health_address)
                _log.info("serving %s on %s", ", ".join([*teachers, *pools]), server.address)
                if config.metrics.address:
                    _announce_metrics(server.observability.metrics_address)
                await signalled.wait()
    # gRPC's tasks end a little after its server; cut off by the loop's end they would log errors.
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    if rest:
        await asyncio.wait(rest, timeout=_LAST_TASKS_SECONDS)
    _log.info("stopped")
    return not any(server.stuck for server in running)


def _announce_metrics(address: str) -> None:
    """Where they are, with a warning where others than this machine can read them."""
    _log.info("metrics and status page on http://%s", address)
    if is_public(address):
        _log.warning(
            "metrics.address: other machines reach %s, which asks for no credential and names "
            "tenants and their load; let the network say who may",
            address,
        )


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
