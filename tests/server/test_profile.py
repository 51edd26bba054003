"""ProfileTeacher over the wire: progress, histories, refusals, and its manners in the queue."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch

from carv.errors import Reason
from carv.tensors import encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_client import AsyncTeacherClient, Branch, InternalError, TeacherClient
from carv_server.errors import RequestError
from carv_server.scheduler import SchedulerConfig
from carv_server.teachers.protocol import Tensors
from tests.server.teachers import FaultyTeacher, GatedTeacher, Wrapped, running, waiting
from tests.server.wire import (
    Failure,
    create,
    create_async,
    estimate_request,
    failure_of,
    latents,
    path,
)
from tests.support.oracle import TIMESTEPS

Request = pb.ProfileTeacherRequest
Change = Callable[[Request], object]


def profile_request(handle: str, renders: int = 2, **fields: Any) -> Request:
    """A good request: score distillation with one branch."""
    values: dict[str, Any] = {"seed": 7, **fields}
    request = Request(latents=encode_tensor(latents(renders)), **values)
    request.objective.branches.add(conditionings=[handle]).coefficient.constant = 1.0
    request.objective.noise_coefficient.constant = -1.0
    return request


def test_progress_rises_to_one_and_ends_with_the_profile(client: TeacherClient) -> None:
    told: list[float] = []
    conditioning = client.create_conditioning(class_id=0)
    profile = client.profile_teacher(
        latents(2),
        conditioning,
        bins=6,
        draws_per_bin=4,
        seed=3,
        history="profile-none",
        progress=told.append,
    )
    assert told == sorted(set(told)) and told[-1] == 1.0
    assert set(told) <= {i / 6 for i in range(1, 7)}
    assert (profile.draws_spent, profile.evaluations_spent) == (2 * 6 * 4, 2 * 6 * 4 * 2)
    assert (profile.seed, len(profile.bins), profile.adaptive) == (3, 6, None)
    for proposal in (profile.prior, profile.weight, profile.oracle):
        assert proposal.shape == (TIMESTEPS,) and not proposal.flags.writeable
        assert proposal.sum() == pytest.approx(1.0) and np.all(proposal >= 0)
    assert profile.evaluation_seconds > 0
    assert sum(each.prior_mass for each in profile.bins) == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_profile_and_an_absent_one_is_told(
    client: TeacherClient,
) -> None:
    x, conditioning = latents(1), client.create_conditioning(class_id=0)
    first = client.profile_teacher(x, conditioning, bins=4)
    again = client.profile_teacher(x, conditioning, bins=4, seed=first.seed)
    other = client.profile_teacher(x, conditioning, bins=4, seed=first.seed ^ 1)

    def second(profile: Any) -> list[float]:
        return [each.second_moment for each in profile.bins]

    np.testing.assert_allclose(second(again), second(first), rtol=1e-5)
    assert not np.allclose(second(other), second(first), rtol=1e-3)


def test_two_draws_a_bin_tell_sizes_but_no_variances(client: TeacherClient) -> None:
    profile = client.profile_teacher(
        latents(1), client.create_conditioning(class_id=0), bins=4, draws_per_bin=2
    )
    assert all(each.second_moment > 0 for each in profile.bins)
    assert all(math.isnan(each.squared_mean) for each in profile.bins)
    assert math.isnan(profile.prior_variance) and math.isnan(profile.squared_gradient)


def test_a_warm_profile_is_what_the_history_proposes_next(client: TeacherClient) -> None:
    x, conditioning = latents(1), client.create_conditioning(class_id=1)

    def profile(history: str, *, warm: bool = False) -> Any:
        return client.profile_teacher(x, conditioning, seed=1, history=history, warm=warm)

    assert profile("profile-warm").adaptive is None
    warmed = profile("profile-warm", warm=True)
    assert warmed.adaptive is None, "the adaptive proposal is that of before"
    after = profile("profile-warm")
    assert after.adaptive is not None
    assert after.past_draws == warmed.draws_spent == 24 * 8
    # The same moments in other bins, smoothed, with 5 % of the prior: near the oracle.
    distance = np.abs(after.adaptive - warmed.oracle).sum() / 2
    assert distance < 0.1 < np.abs(warmed.prior - warmed.oracle).sum() / 2
    assert profile("profile-other").adaptive is None
    estimate = client.estimate_gradient(x, conditioning, seed=1, history="profile-warm")
    assert estimate.proposal == "adaptive", "no seed was used up by looking"


def test_branches_that_cancel_leave_nothing(client: TeacherClient) -> None:
    """eps_hat(x) - eps_hat(reference) with the reference at x is zero at the same (t, eps)."""
    x, conditioning = latents(2), client.create_conditioning(class_id=2)
    profile = client.profile_teacher(
        x,
        branches=[
            Branch(conditioning, 1.0),
            Branch(conditioning, -1.0, use_reference_latents=True),
        ],
        noise_coefficient=0.0,
        reference_latents=x,
        bins=3,
    )
    assert profile.prior_variance == profile.oracle_variance == profile.squared_gradient == 0.0
    np.testing.assert_allclose(profile.oracle, profile.weight)


def _set(**fields: Any) -> Change:
    def change(request: Request) -> None:
        for name, value in fields.items():
            setattr(request, name, value)

    return change


def _poison(request: Request) -> None:
    values = latents(2)
    values[1, 0, 2, 3] = np.nan
    request.latents.CopyFrom(encode_tensor(values))


CASES: dict[str, tuple[Change, set[str]]] = {
    "one bin": (_set(bins=1), {"bins"}),
    "negative bins": (_set(bins=-3), {"bins"}),
    "65 bins": (_set(bins=65), {"bins"}),
    "odd draws": (_set(draws_per_bin=7), {"draws_per_bin"}),
    "negative draws": (_set(draws_per_bin=-2), {"draws_per_bin"}),
    "too many draws": (_set(draws_per_bin=1026), {"draws_per_bin"}),
    "evaluations over the limit": (_set(bins=24, draws_per_bin=1024), {"draws_per_bin"}),
    "evaluations by bins alone": (
        lambda request: request.latents.CopyFrom(encode_tensor(latents(256))),
        {"bins"},
    ),
    "long history": (_set(history="x" * 65), {"history"}),
    "no latents": (lambda request: request.ClearField("latents"), {"latents"}),
    "NaN": (_poison, {"latents.data"}),
    "no branches": (
        lambda request: request.objective.ClearField("branches"),
        {"objective.branches"},
    ),
    "weighting zero": (
        lambda request: request.objective.weighting.table.values.extend([0.0] * TIMESTEPS),
        {"objective.weighting"},
    ),
    "all at once": (
        lambda request: (
            _set(bins=1, draws_per_bin=3, history="x" * 65)(request),
            _poison(request),
            request.objective.prior.table.mass.append(1.0),
        ),
        {"bins", "draws_per_bin", "history", "latents.data", "objective.prior.table.mass"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_names_the_bad_fields(channel: grpc.Channel, case: str) -> None:
    change, fields = CASES[case]
    request = profile_request(create(channel, [0])[0])
    change(request)
    call = channel.unary_stream(path("ProfileTeacher"))(request.SerializeToString(), timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    failure = failure_of(caught.value)
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.reason, failure.domain) == ("INVALID_FIELD", "carv")
    assert failure.fields == fields


def _start(channel: grpc.aio.Channel, request: Request) -> Any:
    return channel.unary_stream(path("ProfileTeacher"))(request.SerializeToString(), timeout=20)


async def _steps(call: Any) -> list[pb.ProfileTeacherResponse]:
    return [pb.ProfileTeacherResponse.FromString(piece) async for piece in call]


async def _failure(call: Any) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _steps(call)
    return failure_of(caught.value)


class Stepping(GatedTeacher):
    """Lets so many forwards through, then waits for its gate."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self._free = free

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        if len(self.forwards) < self._free:
            self.forwards.append(timesteps.tolist())
            return Wrapped.predict_noise(self, z_t, timesteps, conditioning)
        return super().predict_noise(z_t, timesteps, conditioning)


def test_a_client_that_leaves_midway_takes_its_rows_along() -> None:
    async def scenario() -> None:
        teacher = Stepping(free=8)  # the 128 evaluations that are in flight at once
        config = SchedulerConfig(evaluation_budget=16)
        async with running(teacher, scheduler=config) as (server, channel):
            request = profile_request(await create_async(channel), draws_per_bin=8)
            call = _start(channel, request)
            first = pb.ProfileTeacherResponse.FromString(await call.read())
            assert 0 < first.progress < 1 and not first.HasField("profile")
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            scheduler = server._served["mixture"].scheduler
            assert 0 < scheduler.waiting.evaluations <= 128
            call.cancel()
            for _ in range(500):
                if not scheduler.waiting.requests:
                    break
                await asyncio.sleep(0.01)
            assert scheduler.waiting.evaluations == 0
            teacher.gate.set()
        assert sum(map(len, teacher.forwards)) == 9 * 16, "of 384 rows"

    asyncio.run(scenario())


def test_short_requests_pass_a_profile() -> None:
    """A profile of 16384 evaluations has one bin of 256 in the queue at a time: an estimate of 8 is
    in the second forward from its arrival at the latest. Broken by all bins at once."""

    async def scenario() -> None:
        teacher = Stepping(free=3)
        async with running(teacher, scheduler=SchedulerConfig(evaluation_budget=64)) as (
            server,
            channel,
        ):
            handle = await create_async(channel)
            long = profile_request(handle, renders=1, bins=64, draws_per_bin=256)
            profiling = asyncio.create_task(_steps(_start(channel, long)))
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            short = estimate_request([handle], renders=1, draws=8)
            short.objective.prior.table.mass.extend(np.eye(TIMESTEPS)[5].tolist())
            answer = channel.unary_unary(path("EstimateGradient"))(short.SerializeToString())
            await waiting(server, 1)  # it alone: the last rows of the bin are at the device
            teacher.gate.set()
            await answer
            steps = await profiling
        with_short = [i for i, rows in enumerate(teacher.forwards) if 5 in rows]
        assert with_short == [4] and teacher.forwards[4].count(5) == 8
        progress = [step.progress for step in steps]
        assert progress == sorted(progress) and progress[-1] == 1.0 and len(steps) == 64

    asyncio.run(scenario())


def test_a_queue_that_fills_up_midway_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(Wrapped()) as (server, channel):
            scheduler = server._served["mixture"].scheduler
            submit, calls = scheduler.submit, [0]

            async def crowded(work: Any, terms: Any) -> Any:
                calls[0] += 1
                if refuse(calls[0]):
                    raise RequestError(Reason.QUEUE_FULL, "full", retry_delay_seconds=0.01)
                return await submit(work, terms)

            monkeypatch.setattr(scheduler, "submit", crowded)
            request = profile_request(await create_async(channel), renders=16, draws_per_bin=8)
            refuse = lambda n: n in (3, 4, 7)  # noqa: E731
            steps = await _steps(_start(channel, request))
            assert steps[-1].progress == 1.0 and calls[0] == 24 + 3
            calls[0] = 0
            refuse = lambda n: n == 1  # noqa: E731
            failure = await _failure(_start(channel, request))
            assert (failure.reason, failure.retry_delay_seconds) == ("QUEUE_FULL", 0.01)

    asyncio.run(scenario())


def test_a_teacher_that_fails_midway_ends_the_stream_with_its_reason() -> None:
    async def scenario() -> None:
        async with (
            running(FaultyTeacher(nan_at=979, raise_at=-1)) as (server, _),
            AsyncTeacherClient(server.address) as client,
        ):
            told: list[float] = []
            with pytest.raises(InternalError) as caught:
                await client.profile_teacher(
                    latents(16),
                    await client.create_conditioning(class_id=0),
                    prior=np.isin(np.arange(TIMESTEPS), [100, 300, 979]),
                    bins=3,
                    progress=told.append,
                )
            assert caught.value.reason == "NON_FINITE_RESULT"
            assert told and told[-1] < 1.0
            await client.close()
            scheduler = server._served["mixture"].scheduler
            assert scheduler.waiting.evaluations == 0

    asyncio.run(scenario())
