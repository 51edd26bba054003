"""The embedded replica: the teacher in this process, its forward in one thread of its own, so
that the event loop keeps answering."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from carv_server.replicas.device_streams import DeviceStreams, Launched
from carv_server.replicas.forward import Forward, Inputs, NoiseTerms
from carv_server.replicas.hand_over import hand_over
from carv_server.replicas.noise_ahead import NoiseAhead
from carv_server.replicas.protocol import MicrobatchResult, Wanted, Work, WorkResult
from carv_server.replicas.warmup import warm_up
from carv_server.sampling.seeds import Seeds
from carv_server.teachers.protocol import Source, Teacher, TeacherDescription, Tensors

__all__ = ["InProcessReplica"]

_Result = TypeVar("_Result")

# Two more hand-overs between threads cost some 0.2 ms.
_WORTH_OVERLAPPING_SECONDS = 0.003


class _Predicted(NamedTuple):
    predictions: torch.Tensor
    seconds: float


class InProcessReplica:
    """Runs microbatches of one teacher, one forward at a time.

    A microbatch that comes while another is here has noise, z_t and sums made beside the other's
    forward; one that comes to an idle device spares itself most hand-overs between threads, and is
    all the sooner answered.

    Args:
        executor: a single thread; replicas of teachers on one device share it.
        max_rows: rows that the teacher sees at once.
        staging: threads that prepare the next microbatch, and sum up the last one, while the
            device computes, or begin on the sums of one that is alone; None does so in between.
        seeds: what requests without a seed are given: a teacher on the CPU then has noise for the
            next ones made while it computes; None makes none ahead.
    """

    def __init__(
        self,
        teacher: Teacher,
        executor: ThreadPoolExecutor,
        max_rows: int | None = None,
        staging: ThreadPoolExecutor | None = None,
        seeds: Seeds | None = None,
    ) -> None:
        self._teacher = teacher
        self._executor = executor
        self._staging = staging
        self._on_cuda = teacher.device.type == "cuda"
        self._device_seconds = 0.0
        self._present = 0
        self._ahead: NoiseAhead | None = None
        if seeds is not None and teacher.device.type == "cpu" and teacher.description.arithmetic:
            self._ahead = NoiseAhead(seeds, teacher.description.event_shape)
        self._forward = Forward(teacher, max_rows, self._ahead)
        self._streams = DeviceStreams(self._forward) if self._on_cuda else None

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

    def run(self, works: Sequence[Work], wanted: Wanted) -> asyncio.Future[MicrobatchResult]:
        self._present += 1
        ended = asyncio.ensure_future(self._evaluate(works, wanted))
        ended.add_done_callback(self._left)
        return ended

    @property
    def _is_slow(self) -> bool:
        """Whether a forward leaves time for something else."""
        return self._device_seconds >= _WORTH_OVERLAPPING_SECONDS

    def _left(self, ended: asyncio.Future[MicrobatchResult]) -> None:
        self._present -= 1

    def _evaluate(self, works: Sequence[Work], wanted: Wanted) -> Awaitable[MicrobatchResult]:
        if self._staging is not None:
            if self._streams is not None:
                return self._launched(self._streams, works, wanted)
            alone = self._present == 1
            if not alone and self._is_slow:
                return self._overlapped(works, wanted)
        return self._call(lambda: self._whole(works, wanted))

    async def _overlapped(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        """The teacher's forward alone in the device's thread: noise and z_t of the next microbatch
        and the sums of the last one are made beside it."""
        forward = self._forward
        inputs = await self._beside(lambda: forward.inputs(forward.stage(works)))

        def predict() -> _Predicted | MicrobatchResult | None:
            if not all(map(wanted, range(len(works)))):
                return None
            return self._predict(inputs)

        found = await self._call(predict)
        if found is None:  # rare: what is still wanted is laid out again
            return await self._call(lambda: self._whole(works, wanted))
        if isinstance(found, MicrobatchResult):
            return found
        results = await self._beside(lambda: forward.results(inputs, found.predictions))
        return MicrobatchResult(results, found.seconds)

    def _predict(self, inputs: Inputs) -> _Predicted | MicrobatchResult:
        """In the device's thread: the forward, and the sums too where no other microbatch waits
        for it."""
        start = time.perf_counter()
        predictions = self._forward.predict(inputs)
        seconds = self._device_seconds = time.perf_counter() - start
        if self._present > 1 and self._is_slow:
            return _Predicted(predictions, seconds)
        return MicrobatchResult(self._forward.results(inputs, predictions), seconds)

    def _whole(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        """All steps in the device's thread, of what is still wanted."""
        kept = [index for index in range(len(works)) if wanted(index)]
        results: list[WorkResult | None] = [None] * len(works)
        if not kept:
            return MicrobatchResult(results, 0.0)
        forward = self._forward
        those = [works[index] for index in kept]
        inputs = forward.inputs(forward.stage(those))
        terms: Future[NoiseTerms | None] | None = None
        if self._staging is not None and self._is_slow:
            # Nothing else is here, most likely, and so the other threads are free.
            terms = self._staging.submit(forward.noise_terms, inputs)
            if self._ahead is not None:
                self._staging.submit(self._ahead.make, those)
        start = time.perf_counter()
        predictions = forward.predict(inputs)
        if self._on_cuda:  # so far it is only launched
            torch.cuda.current_stream(self._teacher.device).synchronize()
        seconds = self._device_seconds = time.perf_counter() - start
        if terms is not None and terms.cancel():  # the other threads were busy after all
            terms = None
        found = forward.results(inputs, predictions, None if terms is None else terms.result())
        for index, result in zip(kept, found, strict=True):
            results[index] = result
        return MicrobatchResult(results, seconds)

    async def _launched(
        self, streams: DeviceStreams, works: Sequence[Work], wanted: Wanted
    ) -> MicrobatchResult:
        """As ``_overlapped``, but that the device's thread only launches."""
        results: list[WorkResult | None] = [None] * len(works)
        kept = list(range(len(works)))
        while kept:
            those = [works[index] for index in kept]
            prepared = await self._beside(lambda: streams.prepare(those))  # noqa: B023

            def launch() -> Launched | None:
                return streams.launch(prepared) if all(map(wanted, kept)) else None  # noqa: B023

            launched = await self._call(launch)
            if launched is not None:
                found = await self._beside(lambda: streams.finish(launched))  # noqa: B023
                for index, result in zip(kept, found.results, strict=True):
                    results[index] = result
                return MicrobatchResult(results, found.seconds)
            kept = [index for index in kept if wanted(index)]  # rare: laid out again
        return MicrobatchResult(results, 0.0)

    def _beside(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return asyncio.get_running_loop().run_in_executor(self._staging, function)

    def _call(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return hand_over(self._executor, function)
