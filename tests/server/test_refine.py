"""RefineGradient over the wire: why it stops, what it refuses, and how it ends early."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import sampling_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import AsyncTeacherClient, RefinedEstimate, TeacherClient
from carv_server.replicas.protocol import Work
from carv_server.scheduling.job import JobResult
from carv_server.scheduling.terms import Terms
from tests.server.teachers import FaultyTeacher, GatedTeacher, SlowTeacher, running
from tests.server.wire import (
    create,
    create_async,
    estimate_request,
    failure_of,
    latents,
    path,
    stream,
    stream_fails,
)

Change = Callable[[pb.RefineGradientRequest], object]


def refine_request(handles: list[str], renders: int = 2, **bounds: Any) -> pb.RefineGradientRequest:
    estimate = estimate_request(handles, renders)
    return pb.RefineGradientRequest(
        latents=estimate.latents, objective=estimate.objective, seed=7, **bounds
    )


def replies(channel: grpc.Channel, request: pb.RefineGradientRequest) -> list[Any]:
    pieces = stream(channel, "RefineGradient", request)
    return [pb.RefineGradientResponse.FromString(piece) for piece in pieces]


@pytest.fixture(scope="module")
def handles(channel: grpc.Channel) -> list[str]:
    return create(channel, [0, 1])


# Stop reasons.


def test_the_target_ends_each_render_by_itself(channel: grpc.Channel, handles: list[str]) -> None:
    request = refine_request(handles, 3, target_relative_standard_error=0.02)
    last = replies(channel, request)[-1]
    assert last.final and list(last.stop_reasons) == [pb.STOP_REASON_TARGET] * 3
    error = decode_tensor(last.relative_standard_error)
    assert np.all(error < 0.03), "ends are planned: near the target, or well below it"
    draws = decode_tensor(last.draws)
    assert len(set(draws.tolist())) > 1
    assert last.draws_spent >= draws.sum() and last.evaluations_spent == 2 * last.draws_spent
    norm = np.linalg.norm(decode_tensor(last.gradient).reshape(3, -1), axis=1)
    variance = decode_tensor(last.noise_variance)
    np.testing.assert_allclose(error, np.sqrt(variance / (norm**2 - variance)), rtol=1e-5)
    used = last.sampling
    assert (used.draws, used.timestep_sampler) == (0, sampling_pb2.TIMESTEP_SAMPLER_NESTED)


@pytest.mark.parametrize(("most", "draws"), [(1, 1), (2, 2), (5, 4), (64, 64), (301, 300)])
def test_the_draw_budget(channel: grpc.Channel, handles: list[str], most: int, draws: int) -> None:
    request = refine_request(handles, target_relative_standard_error=1e-6, max_draws=most)
    last = replies(channel, request)[-1]
    assert list(last.stop_reasons) == [pb.STOP_REASON_DRAW_BUDGET] * 2
    assert decode_tensor(last.draws).tolist() == [draws] * 2
    if draws == 1:
        assert not last.HasField("noise_variance")
        assert last.variance_estimator == pb.VARIANCE_ESTIMATOR_UNAVAILABLE
        assert np.all(np.isinf(decode_tensor(last.relative_standard_error)))
    else:
        assert last.variance_estimator == pb.VARIANCE_ESTIMATOR_UNBIASED


def test_a_pair_and_a_single_have_no_unbiased_variance(
    channel: grpc.Channel, handles: list[str]
) -> None:
    for most, estimator in (
        (6, pb.VARIANCE_ESTIMATOR_CONSERVATIVE),
        (8, pb.VARIANCE_ESTIMATOR_UNBIASED),
    ):
        request = refine_request(handles, max_draws=most)
        request.sampling.timestep_sampler = sampling_pb2.TIMESTEP_SAMPLER_IID
        request.sampling.noise_coupling = sampling_pb2.NOISE_COUPLING_ANTITHETIC
        assert replies(channel, request)[-1].variance_estimator == estimator


def test_a_gradient_of_zero_is_soon_believed(channel: grpc.Channel, handles: list[str]) -> None:
    request = refine_request(handles, target_relative_standard_error=0.1)
    for branch in request.objective.branches:
        branch.coefficient.constant = 0.0
    request.objective.noise_coefficient.constant = 0.0
    last = replies(channel, request)[-1]
    assert list(last.stop_reasons) == [pb.STOP_REASON_TARGET] * 2
    assert decode_tensor(last.draws).tolist() == [64] * 2
    assert not decode_tensor(last.noise_variance).any()


# The same seed, the same answer; and the answer is the gradient.


def test_a_seed_names_draws_and_ends(channel: grpc.Channel, handles: list[str]) -> None:
    request = refine_request(handles, 3, target_relative_standard_error=0.01)
    request.sampling.history = "seeded"
    first, again = (replies(channel, request)[-1] for _ in range(2))
    assert decode_tensor(first.draws).tolist() == decode_tensor(again.draws).tolist()
    np.testing.assert_allclose(
        decode_tensor(first.gradient), decode_tensor(again.gradient), rtol=1e-5, atol=1e-6
    )


def test_both_clients_refine_to_what_an_estimate_of_many_draws_says(
    analytic_server: str, client: TeacherClient
) -> None:
    x = latents(2)
    conditioning = client.create_conditioning(class_id=1)
    exact = client.estimate_gradient(x, conditioning, draws=1024, seed=1).gradient
    options: dict[str, Any] = {"target_relative_standard_error": 0.01, "seed": 3}
    means = list(client.refine_gradient(x, conditioning, **options))

    async def scenario() -> list[RefinedEstimate]:
        async with AsyncTeacherClient(analytic_server) as own:
            return [mean async for mean in own.refine_gradient(x, conditioning, **options)]

    for last in (means[-1], asyncio.run(scenario())[-1]):
        assert last.final and last.stop_reasons == ("target", "target") and last.seed == 3
        assert last.noise_variance is not None and last.variance_estimator == "unbiased"
        error = np.linalg.norm((last.gradient - exact).reshape(2, -1), axis=1)
        assert np.all(error < 5.0 * np.sqrt(last.noise_variance))
        assert last.draws.shape == (2,) and last.draws_spent >= last.draws.sum()


def test_a_refinement_teaches_the_history_it_names(client: TeacherClient) -> None:
    x, conditioning = latents(1), client.create_conditioning(class_id=1)
    history = "taught by a refinement"
    last = list(client.refine_gradient(x, conditioning, max_draws=32, history=history))[-1]
    assert last.proposal == "prior", "there was no past"
    after = client.estimate_gradient(x, conditioning, draws=4, history=history)
    assert after.proposal == "adaptive"
    assert after.past_draws == pytest.approx(32.0, rel=0.1)


# Bad input.

BAD: dict[str, tuple[Change, str]] = {
    "no bound": (lambda r: r.ClearField("max_draws"), "target_relative_standard_error"),
    "negative target": (
        lambda r: setattr(r, "target_relative_standard_error", -0.1),
        "target_relative_standard_error",
    ),
    "tiny target": (
        lambda r: setattr(r, "target_relative_standard_error", 1e-100),
        "target_relative_standard_error",
    ),
    "nan target": (
        lambda r: setattr(r, "target_relative_standard_error", math.nan),
        "target_relative_standard_error",
    ),
    "infinite target": (
        lambda r: setattr(r, "target_relative_standard_error", math.inf),
        "target_relative_standard_error",
    ),
    "negative draws": (lambda r: setattr(r, "max_draws", -1), "max_draws"),
    "too many draws": (lambda r: setattr(r, "max_draws", 16384 // 4 + 1), "max_draws"),
    "nan seconds": (lambda r: setattr(r, "max_seconds", math.nan), "max_seconds"),
    "negative seconds": (lambda r: setattr(r, "max_seconds", -1.0), "max_seconds"),
    "infinite seconds": (lambda r: setattr(r, "max_seconds", math.inf), "max_seconds"),
    "draws": (lambda r: setattr(r.sampling, "draws", 4), "sampling.draws"),
    "proposal": (lambda r: setattr(r.sampling, "proposal", 77), "sampling.proposal"),
    "history": (lambda r: setattr(r.sampling, "history", "x" * 65), "sampling.history"),
    "latents": (lambda r: r.ClearField("latents"), "latents"),
    "nan latents": (
        lambda r: r.latents.CopyFrom(encode_tensor(np.full_like(latents(2), math.nan))),
        "latents.data",
    ),
    "objective": (
        lambda r: r.objective.branches[0].coefficient.ClearField("kind"),
        "objective.branches[0].coefficient",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_field_is_named(channel: grpc.Channel, handles: list[str], case: str) -> None:
    change, field = BAD[case]
    request = refine_request(handles, max_draws=8)
    change(request)
    failure = stream_fails(channel, "RefineGradient", request)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == {field}


def test_every_bad_field_is_named_at_once(channel: grpc.Channel, handles: list[str]) -> None:
    request = refine_request(
        handles, max_draws=-3, max_seconds=-1.0, target_relative_standard_error=-1.0
    )
    request.sampling.draws = 1
    request.sampling.timestep_sampler = 99  # pyright: ignore[reportAttributeAccessIssue]
    assert stream_fails(channel, "RefineGradient", request).fields == {
        "max_draws",
        "max_seconds",
        "target_relative_standard_error",
        "sampling.draws",
        "sampling.timestep_sampler",
    }


# Early ends.


async def _start(channel: grpc.aio.Channel, seconds: float = 20.0, **bounds: Any) -> Any:
    request = refine_request([await create_async(channel)], **bounds)
    call = channel.unary_stream(path("RefineGradient"))
    return call(request.SerializeToString(), timeout=seconds)


async def _drained(server: Any) -> None:
    """Until nothing waits in the queue and no call is in flight."""
    await asyncio.wait_for(server._front.wait_idle(), 5.0)
    assert server._served["mixture"].scheduler.waiting.evaluations == 0


def test_a_client_that_leaves_drops_its_rows() -> None:
    async def main() -> None:
        async with running(SlowTeacher()) as (server, channel):
            call = await _start(channel, renders=16, target_relative_standard_error=1e-6)
            await call.read()
            assert server._served["mixture"].scheduler.waiting.evaluations > 0
            call.cancel()
            await _drained(server)

    asyncio.run(main())


@pytest.mark.parametrize("bound", ["max_seconds", "deadline"])
def test_time_ends_it_with_what_there_is(bound: str) -> None:
    """Running means meanwhile, at most ten a second, on more and more draws.

    The teacher's pause sets the pace: the fastest machine does not reach the limit of draws first.
    One that stands still leaves no means in the second, or no time for the reply: then once more.
    """
    seconds = 1.0

    async def main() -> list[pb.RefineGradientResponse]:
        bounds: dict[str, float] = {"target_relative_standard_error": 1e-6}
        if bound == "max_seconds":
            bounds["max_seconds"] = seconds
        async with running(SlowTeacher()) as (server, channel):
            deadline = 30.0 if bound == "max_seconds" else seconds
            begun = time.monotonic()
            call = await _start(channel, deadline, renders=1, **bounds)
            try:
                means = [pb.RefineGradientResponse.FromString(piece) async for piece in call]
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                means = []
            assert time.monotonic() - begun < seconds + 5.0
            await _drained(server)
            return means

    means: list[pb.RefineGradientResponse] = []
    for _ in range(3):
        means = asyncio.run(main())
        if len(means) >= 2:
            break
    assert 2 <= len(means) <= 10 * seconds + 6
    assert list(means[-1].stop_reasons) == [pb.STOP_REASON_TIME_BUDGET]
    assert [mean.final for mean in means] == [False] * (len(means) - 1) + [True]
    draws = [int(decode_tensor(mean.draws)[0]) for mean in means]
    assert draws == sorted(draws) and draws[0] < draws[-1]
    errors = [float(decode_tensor(mean.relative_standard_error)[0]) for mean in means]
    assert errors[-1] < errors[0]
    assert list(means[0].stop_reasons) == [pb.STOP_REASON_UNSPECIFIED]


def test_when_time_runs_out_what_is_in_flight_is_dropped() -> None:
    async def main() -> None:
        async with running(SlowTeacher()) as (server, channel):
            call = await _start(channel, target_relative_standard_error=1e-6, max_seconds=0.5)
            last = [pb.RefineGradientResponse.FromString(piece) async for piece in call][-1]
            assert last.stop_reasons[0] == pb.STOP_REASON_TIME_BUDGET
            await _drained(server)

    asyncio.run(main())


def test_a_deadline_ahead_of_the_first_mean_is_one() -> None:
    async def main() -> None:
        teacher = GatedTeacher()
        async with running(teacher) as (server, channel):
            call = await _start(channel, seconds=0.5, target_relative_standard_error=0.1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            teacher.gate.set()
            await _drained(server)

    asyncio.run(main())


def test_a_result_that_is_not_finite_fails_the_call() -> None:
    async def main() -> None:
        teacher = FaultyTeacher(nan_at=500, raise_at=-1)
        async with running(teacher) as (server, channel):
            call = await _start(channel, target_relative_standard_error=1e-6)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
            failure = failure_of(caught.value)
            assert failure.reason == "NON_FINITE_RESULT" and "timestep 500" in failure.message
            await _drained(server)

    asyncio.run(main())


def test_estimates_pass_between_the_blocks_of_many_renders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a call of 64 renders, which takes over 2 s, an estimate of 16 draws has them within
    6 or 7 forwards. Broken by blocks of all renders in the queue at once: more than 20."""

    async def main() -> None:
        teacher = SlowTeacher(0.01)
        async with running(teacher) as (server, channel):
            scheduler, passed = server._served["mixture"].scheduler, list[int]()
            submit = scheduler.submit

            async def watched(work: Work, terms: Terms) -> JobResult:
                before = teacher.forwards
                result = await submit(work, terms)
                if work.seed == 8:
                    passed.append(teacher.forwards - before)
                return result

            monkeypatch.setattr(scheduler, "submit", watched)
            endless = await _start(channel, renders=64, target_relative_standard_error=1e-6)
            await endless.read()
            request = estimate_request([await create_async(channel)], 1, draws=16, seed=8)
            send = channel.unary_unary(path("EstimateGradient"))
            await send(request.SerializeToString(), timeout=20.0)
            assert not endless.done()
            assert len(passed) == 1 and passed[0] <= 12
            endless.cancel()

    asyncio.run(main())
