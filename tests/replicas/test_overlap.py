"""The in-process replica's steps beside each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pytest
import torch

from carv_server.replicas.device_streams import DeviceStreams, Launched
from carv_server.replicas.forward import Forward, Inputs, NoiseTerms, evaluate
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.protocol import Conditioning, MicrobatchResult, Work, WorkResult
from carv_server.teachers.protocol import Tensors, Unconditional
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.replicas.works import make


class _Counting(SimulatedTeacher):
    """Notes the rows of every forward."""

    def __init__(self, event_shape: Sequence[int], timing: DeviceTiming) -> None:
        super().__init__(event_shape, timing)
        self.rows: list[int] = []

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        self.rows.append(len(z_t))
        return super().predict_noise(z_t, timesteps, conditioning)


def _works(teacher: SimulatedTeacher) -> list[Work]:
    """Five, of three draws each."""
    (row,) = teacher.encode(Unconditional())
    return [make(teacher, [Conditioning("none", row)], seed, draws=3) for seed in range(5)]


def test_overlapped_forwards_give_the_same_and_spend_nothing_on_the_dead() -> None:
    """Behind a device that takes its time, the steps around the forward run in other threads.
    Broken by a `predict` of `_overlapped` that does not ask what is still wanted."""
    teacher = _Counting((4, 8, 8), DeviceTiming(0.02, 0.0))
    works = _works(teacher)
    expected = evaluate(teacher, works)

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(2) as staging:
            replica = InProcessReplica(teacher, device, 64, staging)
            first = await replica.run(works, lambda _: True)  # learns that overlapping pays
            begun = time.perf_counter()
            both = await asyncio.gather(
                replica.run(works, lambda _: True), replica.run(works[:2], lambda _: True)
            )
            wall = time.perf_counter() - begun
            teacher.rows.clear()
            beside, some, none = await asyncio.gather(
                replica.run(works, lambda _: True),
                replica.run(works, lambda index: index != 1),
                replica.run(works, lambda _: False),
            )
        assert teacher.rows == [15, 12], "five works of three draws, then four; nothing of the dead"
        for found in (first, both[0], beside):
            _assert_same(found.results, expected)
        _assert_same(both[1].results, expected[:2])
        # Seconds of the device alone: what one waited for the other is in neither.
        assert min(result.seconds for result in both) >= 0.02
        assert sum(result.seconds for result in both) <= wall
        assert some.results[1] is None
        kept = [i for i in range(5) if i != 1]
        _assert_same([some.results[i] for i in kept], [expected[i] for i in kept])
        assert none.results == [None] * 5 and none.seconds == 0.0

    asyncio.run(scenario())


class _Streams:
    """The steps of ``DeviceStreams`` on a CPU; notes how many works each began with."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.prepared: list[int] = []

    def prepare(self, works: Sequence[Work]) -> Inputs:
        self.prepared.append(len(works))
        return self._forward.inputs(self._forward.stage(works))

    def launch(self, prepared: Inputs) -> tuple[Inputs, torch.Tensor]:
        return prepared, self._forward.predict(prepared)

    def finish(self, launched: tuple[Inputs, torch.Tensor]) -> MicrobatchResult:
        return MicrobatchResult(self._forward.results(*launched), 1.0)


def test_a_launched_microbatch_leaves_out_the_dead() -> None:
    """As on a CUDA device, where the forward is launched and waited for in different threads."""
    teacher = SimulatedTeacher((4, 8, 8), DeviceTiming(0.0, 0.0))
    works = _works(teacher)
    expected = evaluate(teacher, works)

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(2) as staging:
            replica = InProcessReplica(teacher, device, 64, staging)
            streams = _Streams(Forward(teacher, 64))
            replica._streams = streams  # pyright: ignore[reportAttributeAccessIssue]
            every = await replica.run(works, lambda _: True)
            some = await replica.run(works, lambda index: index != 1)
            none = await replica.run(works, lambda _: False)
        assert streams.prepared == [5, 5, 4, 5]
        assert (every.seconds, some.seconds, none.seconds) == (1.0, 1.0, 0.0)
        _assert_same(every.results, expected)
        kept = [i for i in range(5) if i != 1]
        assert some.results[1] is None
        _assert_same([some.results[i] for i in kept], [expected[i] for i in kept])
        assert none.results == [None] * 5

    asyncio.run(scenario())


class _Event:
    """Of a stream that is done once the host waits for it."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def synchronize(self) -> None:
        self._log.append("forward over")

    def elapsed_time(self, end: _Event) -> float:
        return 5.0


def test_sums_are_launched_once_their_forward_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sums share a stream. Were it told to wait for a forward, sums of the one before, of which
    some are launched after that, would wait with it."""
    log: list[str] = []

    class Noted(Forward):
        def results(
            self, inputs: Inputs, predictions: torch.Tensor, terms: NoiseTerms | None = None
        ) -> list[WorkResult]:
            log.append("sums")
            return super().results(inputs, predictions, terms)

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)  # as on no device at all
    teacher = SimulatedTeacher((4, 8, 8), DeviceTiming(0.0, 0.0))
    (row,) = teacher.encode(Unconditional())
    works = [make(teacher, [Conditioning("none", row)], seed, draws=3) for seed in range(2)]
    forward = Noted(teacher, 64)
    inputs = forward.inputs(forward.stage(works))
    start, end = (cast(torch.cuda.Event, _Event(log)) for _ in range(2))
    launched = Launched(inputs, forward.predict(inputs), start, end)
    found = DeviceStreams(forward).finish(launched)
    assert log == ["forward over", "sums"]
    assert found.seconds == 0.005
    _assert_same(found.results, evaluate(teacher, works))


def _assert_same(found: Sequence[WorkResult | None], expected: Sequence[WorkResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one is not None and one.residuals is not None and other.residuals is not None
        np.testing.assert_allclose(one.residuals, other.residuals, rtol=1e-6)
        assert one.reduction is not None and other.reduction is not None
        for key, moments in other.reduction.moments.items():
            np.testing.assert_allclose(
                one.reduction.moments[key].mean.numpy(), moments.mean.numpy(), rtol=1e-5, atol=1e-6
            )
