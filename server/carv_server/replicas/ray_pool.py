"""A teacher's replicas as actors of a Ray cluster: started, watched, replaced and scaled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from carv_server.replicas.autoscale import Load, ScaleState, decide
from carv_server.replicas.protocol import Replica, ReplicaLost, ReplicaStartError
from carv_server.replicas.ray_cluster import RayCluster
from carv_server.replicas.ray_config import RayConfig
from carv_server.replicas.ray_latents import SharedLatents
from carv_server.replicas.ray_replica import RayReplica, WorkerSettings
from carv_server.replicas.ray_worker import Worker
from carv_server.teachers.protocol import Source, TeacherDescription, Tensors

__all__ = ["Queue", "RayPool"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LONGEST_RESTART_SECONDS = 30.0
_ENCODE_TRIES = 3


class Queue(Protocol):
    """What a pool needs of the scheduler that its replicas work for."""

    def add_replica(self, replica: Replica) -> None: ...

    async def remove_replica(self, replica: Replica) -> None:
        """Give it nothing more, and return once nothing of it is awaited."""
        ...


class RayPool:
    """Keeps a teacher's replicas at their number. Needs an open cluster; lives on one event loop.

    A replica that dies, freezes or hangs is taken from the queue, ended and replaced by a new
    actor, which joins the queue once its teacher is loaded. What is in flight on it raises
    ReplicaLost.
    """

    def __init__(
        self,
        cluster: RayCluster,
        settings: WorkerSettings,
        config: RayConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._config = config
        self._clock = clock
        auto = 1.0 if settings.device != "cpu" and cluster.gpus > 0 else 0.0
        self._gpus = auto if config.gpus_per_replica is None else config.gpus_per_replica
        self._put_thread = ThreadPoolExecutor(1, thread_name_prefix="latents")
        self._latents = SharedLatents(cluster.put, self._put_thread)
        self._queue: Queue | None = None
        self._warm: list[RayReplica] = []
        self._members: dict[asyncio.Task[None], asyncio.Event] = {}
        self._scaler: asyncio.Task[None] | None = None
        self._description: TeacherDescription | None = None
        self._device = ""

    @property
    def description(self) -> TeacherDescription:
        assert self._description is not None, "not started"
        return self._description

    @property
    def device(self) -> str:
        return self._device

    @property
    def evaluation_budget(self) -> int:
        """As set, or as the first replica measured."""
        budget = self._settings.preparation.evaluation_budget
        assert budget is not None, "not started"
        return budget

    @property
    def warm(self) -> Sequence[RayReplica]:
        """Replicas that take work."""
        return tuple(self._warm)

    @property
    def target(self) -> int:
        """Replicas wanted: warm, starting or being replaced."""
        return len(self._staying)

    @property
    def _staying(self) -> list[asyncio.Event]:
        return [retire for retire in self._members.values() if not retire.is_set()]

    async def start(self) -> None:
        """Start the least number of replicas; returns when all of them are warm. Where the
        evaluation budget is to be measured, one does so before the others start.

        Raises:
            ReplicaStartError: one cannot be had; nothing is left running.
        """
        replicas: list[RayReplica] = []
        try:
            if self._settings.preparation.evaluation_budget is None:
                await self._begin_more(replicas, 1)
            await self._begin_more(replicas, self._config.scale.min_replicas - len(replicas))
        except BaseException as error:
            for replica in replicas:
                replica.kill()
            self._put_thread.shutdown(wait=False)
            if isinstance(error, ReplicaLost):
                free = self._cluster.free()
                raise ReplicaStartError(
                    f"teacher {self._settings.registration.id}: a replica did not start: {error}; "
                    f"each needs {self._config.cpus_per_replica:g} CPUs and {self._gpus:g} GPUs, "
                    f"of which {free['CPU']:g} and {free['GPU']:g} are free"
                ) from None
            raise
        for replica in replicas:
            self._keep(replica)
        await asyncio.sleep(0)  # they begin to serve

    def attach(self, queue: Queue, waiting_seconds: Callable[[], float]) -> None:
        """Let the replicas work for a queue, and scale by it.

        Args:
            waiting_seconds: work in the queue, in seconds of one replica.
        """
        self._queue = queue
        for replica in self._warm:
            queue.add_replica(replica)
        scale = self._config.scale
        if scale.min_replicas < scale.max_replicas:
            self._scaler = asyncio.create_task(self._scale(waiting_seconds))

    async def stop(self) -> None:
        """End every replica. The queue must have stopped, or its work is lost."""
        tasks = [*self._members, *([self._scaler] if self._scaler else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._put_thread.shutdown(wait=False, cancel_futures=True)

    async def encode(self, source: Source) -> Sequence[Tensors]:
        """On any replica; on another where that one is lost.

        Raises:
            ReplicaLost: time after time.
            SourceError: as ``Teacher.encode``.
        """
        for attempt in range(_ENCODE_TRIES):
            replica = next((r for r in self._warm if not r.lost), None)
            if replica is None:
                await asyncio.sleep(self._config.restart_seconds * 2**attempt)
                continue
            with contextlib.suppress(ReplicaLost):
                return await replica.encode(source)
        raise ReplicaLost("no replica of the teacher is there to encode on")

    def _spawn(self) -> RayReplica:
        actor = self._cluster.spawn(
            Worker, True, cpus=self._config.cpus_per_replica, gpus=self._gpus
        )
        return RayReplica(
            self._cluster, actor, self._settings, self._config, self._latents, self._clock
        )

    async def _begin_more(self, replicas: list[RayReplica], count: int) -> None:
        """So many more, side by side."""
        first = len(replicas)
        replicas.extend(self._spawn() for _ in range(count))
        starts = [asyncio.create_task(self._begin(replica)) for replica in replicas[first:]]
        try:
            await asyncio.gather(*starts)
        finally:
            for task in starts:
                task.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    async def _begin(self, replica: RayReplica) -> None:
        """Start a replica and check that it holds the teacher that the others do."""
        await replica.start()
        if self._description is None:
            self._description, self._device = replica.description, replica.device
            # Later ones need not measure again, and all get microbatches of one size.
            measured = replace(
                self._settings.preparation, evaluation_budget=replica.evaluation_budget
            )
            self._settings = replace(self._settings, preparation=measured)
        elif replica.description.digest != self._description.digest:
            raise ReplicaStartError(
                f"teacher {self._settings.registration.id}: a replica loaded other weights "
                f"(digest {replica.description.digest[:12]}, not "
                f"{self._description.digest[:12]}): its folder differs on that machine"
            )

    def _keep(self, replica: RayReplica | None) -> None:
        """Have one replica more, this one to begin with."""
        retire = asyncio.Event()
        task = asyncio.create_task(self._life(replica, retire))
        self._members[task] = retire
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._members.pop(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a replica is kept no longer", exc_info=task.exception())

    async def _life(self, replica: RayReplica | None, retire: asyncio.Event) -> None:
        """One replica after another, until retired."""
        while not retire.is_set():
            replica = replica or await self._another()
            try:
                await self._serve(replica, retire)
            finally:
                replica.kill()
            replica = None

    async def _serve(self, replica: RayReplica, retire: asyncio.Event) -> None:
        """Let it work until it is lost or retired, and what it runs has ended."""
        self._warm.append(replica)
        if self._queue is not None:
            self._queue.add_replica(replica)
        try:
            await self._until_lost(replica, retire)
        finally:
            self._warm.remove(replica)
        if self._queue is not None:
            await self._queue.remove_replica(replica)

    async def _until_lost(self, replica: RayReplica, retire: asyncio.Event) -> None:
        watch, retired = asyncio.create_task(replica.watch()), asyncio.create_task(retire.wait())
        try:
            await asyncio.wait({watch, retired}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                _log.warning("process %d: %s; another takes its place", replica.pid, watch.result())
        finally:
            watch.cancel()
            retired.cancel()

    async def _another(self) -> RayReplica:
        """A new replica, warm; tries until there is one."""
        delay = self._config.restart_seconds
        while True:
            replica: RayReplica | None = None
            try:
                replica = self._spawn()
                await self._begin(replica)
                return replica
            except BaseException as error:
                if replica is not None:
                    replica.kill()
                if not isinstance(error, Exception):
                    raise
                _log.warning("a replica did not start: %s; again in %g s", error, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_RESTART_SECONDS)

    async def _scale(self, waiting_seconds: Callable[[], float]) -> None:
        state, looked = ScaleState(self.target), self._clock()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = self._clock()
            busy = sum(replica.take_busy_seconds() for replica in self._warm)
            load = Load(waiting_seconds(), busy / (now - looked), len(self._warm))
            state, looked = decide(self._config.scale, state, load, now), now
            if state.target != self.target:
                _log.info(
                    "%d to %d replicas: %.1f s of work waiting, %.1f busy",
                    self.target,
                    state.target,
                    load.waiting_seconds,
                    load.busy,
                )
            for _ in range(state.target - self.target):
                self._keep(None)
            for retire in self._staying[state.target :]:
                retire.set()
