"""The actor: the in-process replica in a process of its own. It takes and gives plain types and
arrays only. Knows nothing of ray."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from carv_server.host import keep_freed_memory, settle_heap
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.loading import load_in
from carv_server.replicas.preparation import Preparation, PreparedTeacher, prepare
from carv_server.replicas.protocol import Conditioning
from carv_server.replicas.wire import WorkPacket, pack_results, unpack_works
from carv_server.replicas.wire_teacher import (
    PlainTensors,
    pack_description,
    pack_tensors,
    unpack_source,
    unpack_tensors,
)
from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.protocol import SourceError
from carv_server.teachers.registry import TeacherRegistration

__all__ = ["LoadPacket", "Worker"]

# Conditionings kept; the front sends again what is no longer here.
_MAX_CONDITIONINGS = 1024

Reply = dict[str, Any]


class LoadPacket(TypedDict):
    """A registration, and what a worker makes of it.

    Attributes:
        null_class, sha256: as ``TeacherRegistration``; the folder is the worker's machine's.
        device: "auto", "cpu" or "cuda".
        threads: of a forward on a CPU.
        evaluation_budget, compile, cuda_graphs: as ``Preparation``.
        warm_up: run forwards of the batch sizes in use.
    """

    teacher: str
    folder: str
    null_class: int | None
    sha256: Mapping[str, str]
    device: str
    dtype: str
    threads: int
    evaluation_budget: int | None
    compile: bool
    cuda_graphs: bool
    warm_up: bool


class Worker:
    """Loads a teacher from its registration and runs its microbatches, one at a time.

    Every method is a coroutine on the actor's own event loop, so that probes are answered while a
    forward runs in its thread. Replies are dictionaries: ``{"raised": ...}`` where the teacher
    raised.

    Args:
        own_process: whether nothing else lives in this process, so that its memory may be laid
            out for the worker.
    """

    def __init__(self, own_process: bool = False) -> None:
        # Arrays in shared memory are read-only, and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._staging = ThreadPoolExecutor(2, thread_name_prefix="staging")
        self._replica: InProcessReplica | None = None
        self._conditionings: OrderedDict[str, Conditioning] = OrderedDict()
        self._own_process = own_process
        if own_process:  # into the file that Ray keeps of it
            logging.basicConfig(level=logging.INFO)

    async def ping(self) -> int:
        """This process's id: proof that it still schedules."""
        return os.getpid()

    async def load(self, packet: LoadPacket) -> Reply:
        """Load the teacher and make it ready; ``{"description", "device", "evaluation_budget",
        "seconds"}``, or ``{"refused"}``: why the folder cannot be served, or what the device
        lacks. With ``{"pid", "said"}``: what was logged meanwhile, (level, message)."""
        with _overheard() as said:
            reply = await self._load(packet)
        return {**reply, "pid": os.getpid(), "said": said}

    async def _load(self, packet: LoadPacket) -> Reply:
        started = time.perf_counter()
        name = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name if packet["device"] == "auto" else packet["device"])
        if device.type == "cuda" and not torch.cuda.is_available():
            return {"refused": f"device {device}: the worker's torch sees no CUDA device"}
        torch.set_num_threads(packet["threads"])
        keep_freed_memory()
        try:
            run = asyncio.get_running_loop().run_in_executor
            prepared = await run(self._thread, _prepared, packet, device)
            replica = InProcessReplica(
                prepared.teacher, self._thread, prepared.evaluation_budget, self._staging
            )
            if packet["warm_up"]:
                await replica.warm_up(prepared.warm_sizes)
        except Exception as error:  # noqa: BLE001 - crosses as text, whatever it is
            plain = type(error) is ValueError or isinstance(error, TeacherFolderError)
            kind = "" if plain else f"{type(error).__name__}: "
            return {"refused": f"{kind}{error}"}
        self._replica = replica
        if self._own_process:
            settle_heap()
        return {
            "description": pack_description(prepared.teacher.description),
            "device": device.type,
            "evaluation_budget": prepared.evaluation_budget,
            "seconds": time.perf_counter() - started,
        }

    async def encode(self, kind: str, content: Any) -> Reply:
        """``{"rows": [...]}``, or ``{"faults": [(field, message), ...]}`` of the source."""
        try:
            rows = await self._loaded().encode(unpack_source(kind, content))
        except SourceError as error:
            return {"faults": [(fault.field, str(fault)) for fault in error.all]}
        except Exception as error:  # noqa: BLE001 - crosses as text, whatever it is
            return _raised(error)
        return {"rows": [pack_tensors(row) for row in rows]}

    async def run(
        self,
        packet: WorkPacket,
        conditionings: Mapping[str, PlainTensors],
        *latents: npt.NDArray[np.float32],
    ) -> Reply:
        """``{"result": ...}``, or ``{"missing": [handles]}`` that must be sent along.

        Args:
            conditionings: those that the sender does not know to be here.
        """
        replica = self._loaded()
        for handle, tensors in conditionings.items():
            self._conditionings[handle] = Conditioning(handle, unpack_tensors(tensors))
        missing = [h for h in packet["handles"] if h not in self._conditionings]
        if missing:
            return {"missing": missing}
        works = unpack_works(packet, latents, self._conditioning)
        self._forget(keep=len(packet["handles"]))
        try:
            return {"result": pack_results(await replica.run(works, lambda _: True))}
        except Exception as error:  # noqa: BLE001 - crosses as text, whatever it is
            return _raised(error)

    def _loaded(self) -> InProcessReplica:
        if self._replica is None:
            raise RuntimeError("this worker has loaded no teacher")
        return self._replica

    def _conditioning(self, handle: str) -> Conditioning:
        self._conditionings.move_to_end(handle)
        return self._conditionings[handle]

    def _forget(self, keep: int) -> None:
        while len(self._conditionings) > max(keep, _MAX_CONDITIONINGS):
            self._conditionings.popitem(last=False)


@contextmanager
def _overheard() -> Iterator[list[tuple[int, str]]]:
    """What this package logs inside, from INFO on."""
    said: list[tuple[int, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                said.append((record.levelno, record.getMessage()))
            except Exception:  # noqa: BLE001 - as any handler
                self.handleError(record)

    logger, listener = logging.getLogger("carv_server"), Listener(logging.INFO)
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.removeHandler(listener)


def _prepared(packet: LoadPacket, device: torch.device) -> PreparedTeacher:
    wanted = Preparation(packet["evaluation_budget"], packet["compile"], packet["cuda_graphs"])
    wanted.check(device)
    registration = TeacherRegistration(
        packet["teacher"], Path(packet["folder"]), packet["null_class"], sha256=packet["sha256"]
    )
    teacher = load_in(registration, device, packet["dtype"])
    return prepare(registration.id, teacher, wanted)


def _raised(error: Exception) -> Reply:
    kinds: Sequence[str] = [kind.__name__ for kind in type(error).__mro__]
    return {"raised": (kinds, str(error), "".join(traceback.format_exception(error)))}
