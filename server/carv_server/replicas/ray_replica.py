"""A replica in another process: the front's side of one actor, from its start to its loss."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from carv_server.replicas.preparation import Preparation
from carv_server.replicas.protocol import (
    MicrobatchResult,
    ReplicaLost,
    ReplicaStartError,
    Wanted,
    Work,
    WorkResult,
)
from carv_server.replicas.ray_cluster import RayCluster
from carv_server.replicas.ray_config import RayConfig
from carv_server.replicas.ray_latents import SharedLatents
from carv_server.replicas.ray_worker import LoadPacket
from carv_server.replicas.wire import pack_works, unpack_results
from carv_server.replicas.wire_teacher import (
    pack_source,
    pack_tensors,
    unpack_description,
    unpack_tensors,
)
from carv_server.teachers.protocol import Source, SourceError, TeacherDescription, Tensors
from carv_server.teachers.registry import TeacherRegistration

__all__ = ["RayReplica", "WorkerError", "WorkerSettings", "load_packet"]

_log = logging.getLogger(__name__)

# Fewer than the worker keeps: what is believed to be there mostly is.
_MAX_KNOWN = 512


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker loads.

    Attributes:
        device: "auto", "cpu" or "cuda": which of several GPUs is Ray's choice.
        dtype: torch's name, or "auto".
        threads: of a forward on a CPU.
        preparation: an evaluation budget that is not stated is measured there.
        warm_up: run forwards of the batch sizes in use before it is ready.
    """

    registration: TeacherRegistration
    device: str
    dtype: str
    threads: int
    preparation: Preparation
    warm_up: bool = True


class WorkerError(Exception):
    """The teacher raised in its process something that is not known here; the text says what."""


class RayReplica:
    """One actor that holds one teacher. Once lost it stays lost; another takes its place.

    Args:
        actor: a handle to a ``Worker`` of the cluster.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        cluster: RayCluster,
        actor: Any,
        settings: WorkerSettings,
        config: RayConfig,
        latents: SharedLatents,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._actor = actor
        self._settings = settings
        self._config = config
        self._latents = latents
        self._clock = clock
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._description: TeacherDescription | None = None
        self._device = ""
        self._running = 0
        self._busy_since = 0.0
        self._busy_seconds = 0.0
        self.pid = 0
        self.evaluation_budget = 0

    async def start(self) -> None:
        """Wait for a place in the cluster and for the teacher to be loaded.

        Raises:
            ReplicaStartError: the teacher cannot be loaded there, or time is up.
            ReplicaLost: the process ended.
        """
        registration = self._settings.registration
        reply = await self._call(
            self._actor.load, self._config.start_seconds, load_packet(self._settings)
        )
        # What was said there: else it is in a file of Ray's alone.
        for level, message in reply["said"]:
            _log.log(level, "process %d: %s", reply["pid"], message)
        if "refused" in reply:
            raise ReplicaStartError(f"teacher {registration.id}: {reply['refused']}")
        self._description = unpack_description(reply["description"])
        self._device, self.pid = reply["device"], reply["pid"]
        self.evaluation_budget = int(reply["evaluation_budget"])
        _log.info(
            "teacher %s: process %d on %s has loaded it, microbatches of %d evaluations, digest "
            "%s, %.1f s",
            registration.id,
            self.pid,
            self._device,
            self.evaluation_budget,
            self._description.digest[:12],
            reply["seconds"],
        )

    @property
    def description(self) -> TeacherDescription:
        assert self._description is not None, "not started"
        return self._description

    @property
    def device(self) -> str:
        return self._device

    @property
    def in_flight(self) -> int:
        # The second crosses while the first is computed.
        return 2

    @property
    def lost(self) -> bool:
        return self._lost.done()

    async def encode(self, source: Source) -> Sequence[Tensors]:
        reply = await self._call(
            self._actor.encode, self._config.forward_timeout_seconds, *pack_source(source)
        )
        if "faults" in reply:
            faults = [SourceError(field, message) for field, message in reply["faults"]]
            raise SourceError(faults[0].field, str(faults[0]), faults[1:])
        _raise_for(reply)
        return [unpack_tensors(row) for row in reply["rows"]]

    async def run(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        """Asks ``wanted`` before anything is sent: what a worker has, it computes."""
        kept = [index for index in range(len(works)) if wanted(index)]
        results: list[WorkResult | None] = [None] * len(works)
        if not kept:
            return MicrobatchResult(results, 0.0)
        found = await self._run([works[index] for index in kept])
        for index, result in zip(kept, found.results, strict=True):
            results[index] = result
        return MicrobatchResult(results, found.seconds)

    async def _run(self, works: Sequence[Work]) -> MicrobatchResult:
        packed = pack_works(works)
        latents = await self._latents.references(packed.latents)
        missing = [handle for handle in packed.conditionings if handle not in self._known]

        async def send(handles: Sequence[str]) -> dict[str, Any]:
            return await self._call(
                self._actor.run,
                self._config.forward_timeout_seconds,
                packed.packet,
                {h: pack_tensors(packed.conditionings[h].tensors) for h in handles},
                *latents,
            )

        self._count(1)
        try:
            reply = await send(missing)
            if "missing" in reply:
                reply = await send(list(packed.conditionings))
        finally:
            self._count(-1)
        _raise_for(reply)
        self._remember(packed.conditionings)
        return unpack_results(reply["result"])

    async def watch(self) -> str:
        """Probe until the replica is lost; why. Ends at once where a call found it lost."""
        while not self._lost.done():
            try:
                await self._call(self._actor.ping, self._config.probe_timeout_seconds)
            except ReplicaLost:
                break
            await asyncio.wait({self._lost}, timeout=self._config.probe_seconds)
        return self._lost.result()

    def take_busy_seconds(self) -> float:
        """Seconds with a microbatch in flight since the last call of this."""
        self._count(0)
        taken, self._busy_seconds = self._busy_seconds, 0.0
        return taken

    def kill(self) -> None:
        """End the process, frozen or not; calls still out raise ReplicaLost."""
        self._lose("it was ended")
        self._cluster.kill(self._actor)

    async def _call(self, method: Any, seconds: float, *arguments: Any) -> Any:
        """One call to the actor.

        Raises:
            ReplicaLost: the actor is gone, or did not answer in time and is given up.
        """
        if self._lost.done():
            raise ReplicaLost(self._lost.result())
        try:
            answer = self._cluster.call(method, *arguments)
            answer.add_done_callback(_look_at)
            await asyncio.wait(
                {answer, self._lost}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
        except Exception as error:
            if not self._cluster.is_loss(error):
                raise
            self._lose(f"the worker's process is gone: {type(error).__name__}")
            raise ReplicaLost(self._lost.result()) from None
        answer.cancel()
        self._lose(f"no answer within {seconds:g} s")
        raise ReplicaLost(self._lost.result())

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    def _remember(self, handles: Sequence[str] | dict[str, Any]) -> None:
        for handle in handles:
            self._known[handle] = None
            self._known.move_to_end(handle)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _count(self, change: int) -> None:
        now = self._clock()
        if self._running:
            self._busy_seconds += now - self._busy_since
        self._busy_since = now
        self._running += change


def load_packet(settings: WorkerSettings) -> LoadPacket:
    """What a worker is told."""
    registration, preparation = settings.registration, settings.preparation
    return LoadPacket(
        teacher=registration.id,
        folder=str(registration.folder.absolute()),
        null_class=registration.null_class,
        sha256=dict(registration.sha256),
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        evaluation_budget=preparation.evaluation_budget,
        compile=preparation.compile,
        cuda_graphs=preparation.cuda_graphs,
        warm_up=settings.warm_up,
    )


def _look_at(answer: asyncio.Future[Any]) -> None:
    """An answer that comes when nobody waits any more may be an error without harm."""
    if not answer.cancelled():
        answer.exception()


_KINDS: dict[str, type[Exception]] = {
    # What the scheduler treats apart keeps its type.
    "OutOfMemoryError": torch.OutOfMemoryError,
    "MemoryError": MemoryError,
}


def _raise_for(reply: dict[str, Any]) -> None:
    if "raised" not in reply:
        return
    kinds, message, trace = reply["raised"]
    known = next((_KINDS[kind] for kind in kinds if kind in _KINDS), None)
    error = WorkerError(f"{kinds[0]}: {message}") if known is None else known(message)
    error.add_note(f"in the worker:\n{trace}")
    raise error
