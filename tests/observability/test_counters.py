"""The server's counters are the client's own counts, exactly: by method and code, by reason, and in
evaluations and draws.

What the counting costs a request on the event loop, measured on two busy cores (a call begun,
noted and ended; best of five times 20,000): 6.5 us, and 1.5 us for a microbatch of four requests;
a scrape takes 4 ms for one teacher, 1 of them for failures that are at zero.

Breaks it (tried): no ``succeeded`` for the answers on a stream, or no ``cancelled`` for its
requests at their end; a cancelled request that counts as answered; draws counted as evaluations;
every cancelled call taken for one that its client gave up; a refinement that counts at a good end
alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from carv.errors import Reason
from carv.tensors import encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.request import RequestLimits
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.teachers.protocol import Source, Tensors
from tests.observability.support import Samples, scrape, settled, watched
from tests.server.streamed import Stream, details_of
from tests.server.teachers import GatedTeacher, Wrapped, oracle_teacher, waiting
from tests.server.wire import (
    create_async,
    estimate_request,
    failure_of,
    latents,
    path,
    predict_request,
)


@dataclass
class Tally:
    """The client's own counts."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    evaluations: int = 0
    draws: int = 0

    def good(self, method: str, reply: Any = None) -> None:
        self.ended[method, "OK"] += 1
        if reply is not None:
            self.evaluations += reply.evaluations_spent
            self.draws += reply.draws_spent

    def bad(self, method: str, code: grpc.StatusCode, reason: str) -> None:
        self.ended[method, code.name] += 1
        self.reasons[method, reason] += 1


def ended(samples: Samples) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for (name, labels), value in samples.items():
        if name == "carv_requests_total":
            of = dict(labels)
            assert of["tenant"] == "none"
            found[of["method"], of["code"]] += int(value)
    return found


def reasons(samples: Samples) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for (name, labels), value in samples.items():
        if name == "carv_request_failures_total":
            found[dict(labels)["method"], dict(labels)["reason"]] += int(value)
    return found


def of_teacher(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset({"teacher": "mixture", **labels}.items())]


def compare(samples: Samples, mine: Tally) -> None:
    assert ended(samples) == mine.ended
    assert reasons(samples) == mine.reasons
    assert of_teacher(samples, "carv_evaluations_total", tenant="none") == mine.evaluations
    assert of_teacher(samples, "carv_draws_total", tenant="none") == mine.draws
    for method in {method for method, _ in mine.ended}:
        count = samples["carv_request_duration_seconds_count", frozenset({("method", method)})]
        assert count == sum(n for (name, _), n in mine.ended.items() if name == method)


async def ask(
    channel: grpc.aio.Channel, mine: Tally, method: str, request: Any, reply: Any = None
) -> None:
    """A unary call or a stream of replies, tallied; ``reply``: its type, where it says what was
    spent."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    try:
        if method in ("RefineGradient", "ProfileTeacher"):
            last = [reply async for reply in channel.unary_stream(path(method))(data, timeout=30)][
                -1
            ]
        else:
            last = await channel.unary_unary(path(method))(data, timeout=30)
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error)
        mine.bad(method, failure.code, failure.reason)
        return
    parsed: Any = None if reply is None else reply.FromString(last)
    mine.good(method, parsed.profile if method == "ProfileTeacher" else parsed)


def refine_request(handle: str) -> pb.RefineGradientRequest:
    request = pb.RefineGradientRequest(latents=encode_tensor(latents(2)), seed=5)
    request.objective.CopyFrom(estimate_request([handle]).objective)
    request.max_draws = 24
    return request


def profile_request(handle: str) -> pb.ProfileTeacherRequest:
    request = pb.ProfileTeacherRequest(latents=encode_tensor(latents(1)), seed=5)
    request.objective.CopyFrom(estimate_request([handle]).objective)
    request.bins, request.draws_per_bin = 4, 4
    return request


def test_every_method_and_every_kind_of_refusal() -> None:
    async def main() -> None:
        mine = Tally()
        async with watched(oracle_teacher()) as (server, channel):
            handle = await create_async(channel)
            mine.good("CreateConditioning")
            good, other = estimate_request([handle]), estimate_request([handle], draws=3, seed=8)
            bad = estimate_request([handle], draws=0)
            elsewhere = estimate_request([handle])
            elsewhere.teacher = "nobody"
            gone = estimate_request(["class-0000"])
            for request in (good, other, good, bad, elsewhere, gone, b"\xff\xff"):
                await ask(channel, mine, "EstimateGradient", request, pb.EstimateGradientResponse)
            halves = estimate_request([handle, handle], draws=8, seed=9)
            halves.return_half_estimates = True
            await ask(channel, mine, "EstimateGradient", halves, pb.EstimateGradientResponse)
            predict = predict_request(handle, [3, 500, 900])
            await ask(channel, mine, "PredictNoise", predict, pb.PredictNoiseResponse)
            await ask(
                channel, mine, "RefineGradient", refine_request(handle), pb.RefineGradientResponse
            )
            await ask(
                channel, mine, "ProfileTeacher", profile_request(handle), pb.ProfileTeacherResponse
            )
            await ask(channel, mine, "ListTeachers", b"")
            await ask(channel, mine, "GetTeacher", b"")
            await ask(channel, mine, "GetTeacher", pb.GetTeacherRequest(teacher="nobody"))
            kept = pb.CreateLatentsRequest(latents=encode_tensor(latents(1)))
            await ask(channel, mine, "CreateLatents", kept)
            samples = await settled(server)
            compare(samples, mine)
            assert mine.ended["EstimateGradient", "OK"] == 4 and mine.evaluations > 100
            assert mine.ended["RefineGradient", "OK"] == mine.ended["ProfileTeacher", "OK"] == 1
            # All that was computed was answered here.
            assert of_teacher(samples, "carv_computed_evaluations_total") == mine.evaluations
            name = "carv_cache_entries"
            assert samples[name, frozenset({("cache", "latents")})] == 1
            assert samples[name, frozenset({("cache", "conditioning")})] == 1

    asyncio.run(main())


def test_requests_on_a_stream_answered_refused_failed_and_cancelled() -> None:
    async def main() -> None:
        mine, teacher = Tally(), GatedTeacher()
        limits = RequestLimits(max_stream_requests=3)
        inner = "StreamGradients/request"
        async with watched(teacher, limits=limits) as (server, channel):
            handle = await create_async(channel)
            mine.good("CreateConditioning")
            stream = Stream(channel)
            for number in range(3):
                await stream.ask(number, estimate_request([handle], seed=number))
            await asyncio.to_thread(teacher.entered.wait, 10)
            await stream.ask(9, estimate_request([handle]))  # one too many
            details = details_of(await stream.answer())
            assert details.reason == Reason.QUEUE_FULL and details.metadata["request_id"]
            mine.bad(inner, grpc.StatusCode.RESOURCE_EXHAUSTED, details.reason)
            await stream.cancel(2)
            assert details_of(await stream.answer()).reason == Reason.CANCELLED
            mine.bad(inner, grpc.StatusCode.CANCELLED, "CANCELLED")
            await stream.ask(7, estimate_request([handle], draws=0))
            invalid = details_of(await stream.answer())
            assert invalid.reason == Reason.INVALID_FIELD
            mine.bad(inner, grpc.StatusCode.INVALID_ARGUMENT, invalid.reason)
            await stream.ask(8, estimate_request([handle]), seconds=0.05)
            assert details_of(await stream.answer()).reason == Reason.DEADLINE_EXPIRED
            mine.bad(inner, grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
            samples = await scrape(server)
            label = frozenset({("method", inner)})
            assert samples["carv_requests_in_flight", label] == 2
            assert (
                samples["carv_requests_in_flight", frozenset({("method", "StreamGradients")})] == 1
            )
            teacher.gate.set()
            for answer in (await stream.answers(2)).values():
                mine.good(inner, answer.estimate)
            await stream.half_close()
            await stream.ended()
            mine.good("StreamGradients")
            compare(await settled(server), mine)
            # What was cancelled was computed all the same, or not; the counters say which.
            computed = of_teacher(await scrape(server), "carv_computed_evaluations_total")
            assert computed >= mine.evaluations == 16

    asyncio.run(main())


def test_a_stream_that_its_client_leaves_takes_its_requests_along() -> None:
    async def main() -> None:
        teacher = GatedTeacher()
        async with watched(teacher) as (server, channel):
            handle = await create_async(channel)
            stream = Stream(channel)
            for number in range(4):
                await stream.ask(number, estimate_request([handle], seed=number))
            await asyncio.to_thread(teacher.entered.wait, 10)
            await waiting_in_flight(server, "StreamGradients/request", 4)
            stream.call.cancel()
            samples = await settled(server)
            teacher.gate.set()
            found = ended(samples)
            assert found["StreamGradients/request", "CANCELLED"] == 4
            assert found["StreamGradients", "CANCELLED"] == 1

    asyncio.run(main())


async def waiting_in_flight(server: RunningServer, method: str, count: int) -> None:
    for _ in range(500):
        samples = await scrape(server)
        if samples["carv_requests_in_flight", frozenset({("method", method)})] == count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"no {count} of {method} in flight")


def test_cancelled_late_and_refused_calls() -> None:
    """Two in compute, four waiting; of these one leaves and one is late; two more do not fit."""

    async def main() -> None:
        mine, teacher = Tally(), GatedTeacher()
        scheduler = SchedulerConfig(evaluation_budget=8, max_waiting_requests=4)
        method = "EstimateGradient"
        async with watched(teacher, scheduler=scheduler) as (server, channel):
            handle = await create_async(channel)
            mine.good("CreateConditioning")

            def begin(seed: int, timeout: float = 30.0) -> Any:
                data = estimate_request([handle], seed=seed).SerializeToString()
                return channel.unary_unary(path(method))(data, timeout=timeout)

            async def end(call: Any) -> None:
                try:
                    mine.good(method, pb.EstimateGradientResponse.FromString(await call))
                except grpc.aio.AioRpcError as error:
                    failure = failure_of(error)
                    mine.bad(method, failure.code, failure.reason)
                except asyncio.CancelledError:
                    mine.bad(method, grpc.StatusCode.CANCELLED, "CANCELLED")

            first = begin(1)
            await asyncio.to_thread(teacher.entered.wait, 10)
            rest = [begin(seed) for seed in (2, 3)]
            late, leaving = begin(4, timeout=1.4), begin(5)
            await waiting(server, 4)
            for seed in (6, 7):
                await end(begin(seed))
            assert mine.reasons[method, "QUEUE_FULL"] == 2
            leaving.cancel()
            await end(leaving)
            code = await late.code()
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            mine.bad(method, code, "DEADLINE_EXPIRED")
            teacher.gate.set()
            for call in (first, *rest):
                await end(call)
            samples = await settled(server)
            compare(samples, mine)
            assert mine.ended[method, "OK"] == 3
            assert mine.ended[method, "CANCELLED"] == mine.ended[method, "DEADLINE_EXCEEDED"] == 1
            assert of_teacher(samples, "carv_jobs_total", outcome="refused") == 2
            assert of_teacher(samples, "carv_jobs_total", outcome="answered") == 3
            assert of_teacher(samples, "carv_queue_wait_seconds_count") == 3

    asyncio.run(main())


class StallingTeacher(Wrapped):
    """Stops in its fourth forward until its gate is open.

    Attributes:
        rows: of the forwards before that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.stalled = threading.Event(), threading.Event()
        self.rows = 0
        self._left = 3

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        if self._left == 0:
            self.stalled.set()
            self.gate.wait(20)
        else:
            self._left -= 1
            self.rows += len(z_t)
        return super().predict_noise(z_t, timesteps, conditioning)


def test_what_a_refinement_spent_that_its_client_closes_early() -> None:
    """Its client has what it asked for. Broken by counting what ends well alone."""

    async def main() -> None:
        teacher = StallingTeacher()
        # No block is cut: what the forwards computed has been delivered, or nothing of it.
        budget = SchedulerConfig(evaluation_budget=1024)
        async with watched(teacher, scheduler=budget) as (server, channel):
            handle = await create_async(channel)
            request = refine_request(handle)
            request.max_draws = 1000
            call: Any = channel.unary_stream(path("RefineGradient"))(
                request.SerializeToString(), timeout=30
            )
            last = pb.RefineGradientResponse()
            while last.evaluations_spent == 0 or last.evaluations_spent < teacher.rows:
                last = pb.RefineGradientResponse.FromString(await call.read())
                # From then on nothing moves any more.
                assert await asyncio.to_thread(teacher.stalled.wait, 10)
            call.cancel()
            samples = await settled(server)
            teacher.gate.set()
            assert ended(samples)["RefineGradient", "CANCELLED"] == 1
            spent = of_teacher(samples, "carv_evaluations_total", tenant="none")
            assert spent == last.evaluations_spent == teacher.rows > 0
            assert of_teacher(samples, "carv_draws_total", tenant="none") == last.draws_spent
            seconds = of_teacher(samples, "carv_reply_device_seconds_total", tenant="none")
            assert seconds == pytest.approx(last.timings.compute_seconds)
            assert not any(name == "carv_estimates_total" for name, _ in samples)

    asyncio.run(main())


class SlowEncoder(Wrapped):
    """Encodes once its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def encode(self, source: Source) -> Sequence[Tensors]:
        self.gate.wait(20)
        return super().encode(source)


def test_a_deadline_that_only_grpc_knows_is_told_from_a_cancelled_call() -> None:
    """Nothing of CreateConditioning is in the queue, which would tell of it first."""

    async def main() -> None:
        mine, teacher = Tally(), SlowEncoder()
        method = "CreateConditioning"
        request = pb.CreateConditioningRequest()
        request.source.classes.class_ids.append(0)
        async with watched(teacher) as (server, channel):
            for timeout in (1.0, 1.234, 30.0):
                call: Any = channel.unary_unary(path(method))(
                    request.SerializeToString(), timeout=timeout
                )
                await waiting_in_flight(server, method, 1)
                if timeout > 10:
                    call.cancel()
                    mine.bad(method, grpc.StatusCode.CANCELLED, "CANCELLED")
                else:
                    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    mine.bad(method, grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
                samples = await settled(server)
            teacher.gate.set()
            assert ended(samples) == mine.ended and reasons(samples) == mine.reasons

    asyncio.run(main())
