"""The embedded replica: the teacher in this process, its forward in one thread of its own, so
that the event loop keeps answering."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from carv_server.replicas.forward import Forward
from carv_server.replicas.protocol import MicrobatchResult, Wanted, Work, WorkResult
from carv_server.replicas.staging import Staged
from carv_server.replicas.warmup import warm_up
from carv_server.teachers.protocol import Source, Teacher, TeacherDescription, Tensors

__all__ = ["InProcessReplica"]

_Result = TypeVar("_Result")

# Two more hand-overs between threads cost some 0.2 ms.
_WORTH_OVERLAPPING_SECONDS = 0.003


class InProcessReplica:
    """Runs microbatches of one teacher, one at a time.

    Args:
        executor: a single thread; replicas of teachers on one device share it.
        max_rows: rows that the teacher sees at once.
        staging: threads that prepare the next microbatch, and sum up the last one, while the
            device computes; None does so in between.
    """

    def __init__(
        self,
        teacher: Teacher,
        executor: ThreadPoolExecutor,
        max_rows: int | None = None,
        staging: ThreadPoolExecutor | None = None,
    ) -> None:
        self._teacher = teacher
        self._executor = executor
        self._staging = staging
        self._on_cuda = teacher.device.type == "cuda"
        self._device_seconds = 0.0
        self._forward = Forward(teacher, max_rows)

    @property
    def description(self) -> TeacherDescription:
        return self._teacher.description

    @property
    def device(self) -> str:
        return self._teacher.device.type

    @property
    def in_flight(self) -> int:
        # The second one waits in the thread's queue: the device need not wait for the event loop.
        return 2

    async def encode(self, source: Source) -> Sequence[Tensors]:
        return await self._call(lambda: self._teacher.encode(source))

    async def warm_up(self, sizes: Sequence[int]) -> None:
        """First forwards of these sizes.

        Raises:
            RuntimeError: as ``warm_up``; or whatever the teacher raises.
        """
        await self._call(lambda: warm_up(self._forward, sizes))

    async def run(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        if self._staging is None:
            return await self._call(lambda: self._alone(works, wanted))
        if self._on_cuda:
            # The device does the arithmetic in the order it is given: laid out ahead is enough.
            staged = await self._beside(lambda: self._forward.stage(works))
            return await self._call(lambda: self._timed(works, wanted, staged))
        if self._device_seconds < _WORTH_OVERLAPPING_SECONDS:
            return await self._call(lambda: self._alone(works, wanted))
        return await self._overlapped(works, wanted)

    async def _overlapped(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        """The teacher's forward alone in the device's thread: noise and z_t of the next microbatch
        and the sums of the last one are made beside it."""
        forward = self._forward
        inputs = await self._beside(lambda: forward.inputs(forward.stage(works)))

        def predict() -> tuple[torch.Tensor, float] | None:
            if not all(map(wanted, range(len(works)))):
                return None
            start = time.perf_counter()
            predictions = forward.predict(inputs)
            return predictions, time.perf_counter() - start

        found = await self._call(predict)
        if found is None:  # rare: what is still wanted is laid out again
            return await self._call(lambda: self._alone(works, wanted))
        predictions, seconds = found
        self._device_seconds = seconds
        results = await self._beside(lambda: forward.results(inputs, predictions))
        return MicrobatchResult(results, seconds)

    def _alone(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        result = self._timed(works, wanted, None)
        self._device_seconds = result.seconds
        return result

    def _timed(
        self, works: Sequence[Work], wanted: Wanted, staged: Staged | None
    ) -> MicrobatchResult:
        # Results are on the host when the forward returns: nothing is left to wait for.
        start = time.perf_counter()
        results: list[WorkResult | None] = [None] * len(works)
        kept = [index for index in range(len(works)) if wanted(index)]
        if staged is not None and len(kept) == len(works):
            found = self._forward.compute(staged)
        else:
            found = self._forward.evaluate([works[index] for index in kept]) if kept else []
        for index, result in zip(kept, found, strict=True):
            results[index] = result
        return MicrobatchResult(results, time.perf_counter() - start)

    async def _beside(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._staging, function)

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)
