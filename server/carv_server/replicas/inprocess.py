"""The embedded replica: the teacher in this process, its forward in one thread of its own, so
that the event loop keeps answering."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from carv_server.replicas.forward import evaluate
from carv_server.replicas.protocol import MicrobatchResult, Wanted, Work, WorkResult
from carv_server.teachers.protocol import Source, Teacher, TeacherDescription, Tensors

__all__ = ["InProcessReplica"]

_Result = TypeVar("_Result")


class InProcessReplica:
    """Runs microbatches of one teacher, one at a time.

    Args:
        executor: a single thread; replicas of teachers on one device share it.
        max_rows: rows that the teacher sees at once.
    """

    def __init__(
        self, teacher: Teacher, executor: ThreadPoolExecutor, max_rows: int | None = None
    ) -> None:
        self._teacher = teacher
        self._max_rows = max_rows
        self._executor = executor

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

    async def run(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        return await self._call(lambda: self._timed(works, wanted))

    def _timed(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        start = time.perf_counter()
        results: list[WorkResult | None] = [None] * len(works)
        kept = [index for index in range(len(works)) if wanted(index)]
        if kept:
            found = evaluate(self._teacher, [works[index] for index in kept], self._max_rows)
            if self._teacher.device.type == "cuda":
                torch.cuda.synchronize(self._teacher.device)
            for index, result in zip(kept, found, strict=True):
                results[index] = result
        return MicrobatchResult(results, time.perf_counter() - start)

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)
