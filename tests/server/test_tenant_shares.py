"""Tenants over real gRPC on a device with a known speed: quotas and fair shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from carv.errors import Reason
from carv_client import (
    AsyncTeacherClient,
    Branch,
    ClientConfig,
    QuotaExceededError,
)
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.teachers.protocol import Tensors
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.support.tenants import serving, tenant, token_of

SHAPE = (1, 4, 4)
FREE = DeviceTiming(0.0, 0.0)


def _teacher() -> SimulatedTeacher:
    return SimulatedTeacher(SHAPE, FREE, arithmetic=False)


@dataclass
class Caller:
    """What a tenant's closed loops got, and for how many microbatches each request was out."""

    evaluations: int = 0
    microbatches: list[int] = field(default_factory=list[int])
    refusals: int = 0


def _microbatches(server: RunningServer) -> int:
    """That the device has run."""
    return server._served["simulated"].scheduler.snapshot().microbatches


async def _loop(
    server: RunningServer,
    of: str,
    caller: Caller,
    draws: int,
    all_ready: asyncio.Barrier,
    going: Callable[[], bool],
    latent: float = 0.0,
) -> None:
    """One after the other, each as soon as the one before it is answered; begins with the rest."""
    config = ClientConfig(
        address=server.address, token=token_of(of), retry_attempts=1, timeout_seconds=60.0
    )
    latents = np.full((1, *SHAPE), latent, np.float32)
    async with AsyncTeacherClient(config) as client:
        handle = await client.create_conditioning(unconditional=True)
        branches = [Branch(handle, 1.0)]
        await all_ready.wait()
        while going():
            sent = _microbatches(server)
            try:
                reply = await client.estimate_gradient(
                    latents, branches=branches, noise_coefficient=-1.0, draws=draws, sampler="iid"
                )
            except QuotaExceededError as error:
                caller.refusals += 1
                await asyncio.sleep(error.retry_delay or 0.0)
                continue
            caller.evaluations += reply.evaluations_spent
            caller.microbatches.append(_microbatches(server) - sent)


async def _quota(rate: float, seconds: float) -> tuple[int, float]:
    """Evaluations that a tenant with a quota gets, who asks for more, and the seconds it had."""
    tenants = [tenant("a", evaluations_per_second=rate)]
    async with serving({"simulated": _teacher()}, tenants) as server:
        caller, all_ready = Caller(), asyncio.Barrier(4)
        begin = time.perf_counter()
        loops = (
            _loop(server, "a", caller, 20, all_ready, lambda: time.perf_counter() < begin + seconds)
            for _ in range(4)
        )
        await asyncio.gather(*loops)
        assert caller.refusals, "it asks for more than it may have"
        return caller.evaluations, time.perf_counter() - begin


@pytest.mark.slow
def test_a_minute_of_a_quota_within_5_percent() -> None:
    """In real time, over real gRPC; `tests/tenants/test_quota.py` has it on a clock of its own.

    Breaks with: a bucket of 10 s.
    """
    evaluations, seconds = asyncio.run(_quota(200.0, 60.0))
    assert evaluations / seconds == pytest.approx(200.0, rel=0.05)


def test_three_seconds_of_a_quota() -> None:
    """A second's burst comes on top. How much is allowed is strict by the clock; how much of that
    is taken is the machine's, which may pause for longer than the bucket fills.

    Breaks with: no charge in `estimate_gradient`; a bucket of 10 s.
    """
    evaluations, seconds = asyncio.run(_quota(200.0, 3.0))
    assert 0.5 * 200.0 * 3.0 <= evaluations <= 200.0 * (seconds + 1.0)


def test_a_refusal_over_the_wire_and_the_clients_patience() -> None:
    """QuotaFailure and RetryInfo arrive, and the client's own retries heed them.

    Breaks with: `quota_violations` left out of `status_of`, or RetryInfo out of `Quota`.
    """

    async def scenario() -> None:
        tenants = [
            tenant("a", evaluations_per_second=20.0, evaluations_in_flight=130),
            tenant("b", evaluations_per_second=20.0),
        ]
        async with serving({"simulated": _teacher()}, tenants) as server:
            latents = np.zeros((1, *SHAPE), np.float32)
            config = ClientConfig(address=server.address, token=token_of("a"), retry_attempts=1)
            async with AsyncTeacherClient(config) as client:
                handle = await client.create_conditioning(unconditional=True)
                branches = [Branch(handle, 1.0)]
                given: dict[str, Any] = {"branches": branches, "noise_coefficient": -1.0}
                await asyncio.sleep(0.1)  # the bucket is full again: a conditioning costs one
                # Into debt: nothing passes for more than 5 s, however slow the machine is.
                await client.estimate_gradient(latents, draws=120, **given)
                with pytest.raises(QuotaExceededError) as caught:
                    await client.estimate_gradient(latents, draws=10, **given)
                error = caught.value
                assert error.reason == Reason.QUOTA_EXCEEDED.value
                assert error.retry_delay is not None and 0.0 < error.retry_delay < 5.51
                (violation,) = error.quotas
                assert violation.subject == "tenant:a"
                assert "evaluations_per_second" in violation.description
                with pytest.raises(QuotaExceededError) as caught:
                    await client.estimate_gradient(latents, draws=131, **given)
                assert caught.value.retry_delay is None
                assert "evaluations_in_flight" in caught.value.quotas[0].description
                # Also what a stream and a refinement ask for.
                with pytest.raises(QuotaExceededError):
                    await (await client.submit(latents, draws=30, **given))
                with pytest.raises(QuotaExceededError):
                    async for _ in client.refine_gradient(
                        latents, max_draws=64, target_relative_standard_error=1e-6, **given
                    ):
                        pass
            async with AsyncTeacherClient(server.address, token=token_of("b")) as client:
                handle = await client.create_conditioning(unconditional=True)
                given["branches"] = [Branch(handle, 1.0)]
                begin = time.perf_counter()
                for _ in range(3):
                    await client.estimate_gradient(latents, draws=20, **given)
                assert time.perf_counter() - begin > 1.5, "60 evaluations at 20 a second"

    asyncio.run(scenario())


BUDGET = 8
ROWS = 8  # a full microbatch's worth: the fewer requests, the slower a machine may be
MARK = 1e4  # of the second tenant's latents: its rows are known by it at any noise level


class _Shared(SimulatedTeacher):
    """A device that knows the rows of two tenants apart: answers come many at a time, as a
    tenant's requests take turns, and would show shares only in the long run.

    Slow next to what the machine adds, which is one process's loop for callers and server.
    """

    def __init__(self, launch_seconds: float) -> None:
        super().__init__(SHAPE, DeviceTiming(launch_seconds, 0.002))
        self.rows = np.zeros(2, np.int64)

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        predicted = super().predict_noise(z_t, timesteps, conditioning)
        marked = int((z_t.amax(dim=(1, 2, 3)) > MARK / 100).sum())
        self.rows = self.rows + np.array([len(z_t) - marked, marked])
        return predicted

    async def window(self, microbatches: int) -> np.ndarray:
        """Rows of each tenant in the next so many: by count, so that neither a slow machine nor
        one that pauses for a while changes what is compared."""
        before, latest = self.rows, time.monotonic() + 60.0
        while (found := self.rows - before).sum() < microbatches * BUDGET:
            assert time.monotonic() < latest
            await asyncio.sleep(0.005)
        return found


@asynccontextmanager
async def _calling(
    server: RunningServer, loops: Mapping[str, int]
) -> AsyncGenerator[list[Caller], None]:
    """Two tenants with so many closed loops each, which go on until the block ends."""
    callers, over = [Caller() for _ in loops], asyncio.Event()
    all_ready = asyncio.Barrier(sum(loops.values()))

    def going() -> bool:
        return not over.is_set()

    async with asyncio.TaskGroup() as tasks:
        for caller, (name, count), latent in zip(callers, loops.items(), (0.0, MARK), strict=True):
            for _ in range(count):
                tasks.create_task(_loop(server, name, caller, ROWS, all_ready, going, latent))
        yield callers
        over.set()


def test_a_flood_takes_no_more_than_its_share() -> None:
    """A tenant with four callers beside one with 24 gets at least 90 % of half of what the device
    gave. Four of its 32 rows go in each microbatch, so that a request waits for eight of them:
    nine in ten wait for twice that at most.

    Breaks with: `Call.tenant` left empty (one queue for all: a seventh of the device, and 28
    microbatches).
    """

    async def scenario() -> tuple[np.ndarray, list[int]]:
        device = _Shared(0.032)
        scheduler = SchedulerConfig(evaluation_budget=BUDGET)
        async with (
            serving(
                {"simulated": device}, [tenant("quiet"), tenant("flood")], scheduler=scheduler
            ) as server,
            _calling(server, {"quiet": 4, "flood": 24}) as (caller, _),
        ):
            await device.window(8)  # until all take part
            answered = len(caller.microbatches)
            return await device.window(48), caller.microbatches[answered:]

    (quiet, flood), waited = asyncio.run(scenario())
    assert quiet >= 0.9 * (quiet + flood) / 2, (quiet, flood)
    assert float(np.quantile(waited, 0.9)) <= 16.0


def test_weights_are_shares_and_change_while_they_are_used() -> None:
    """Three to one, then one to three, among tenants that both ask for all.

    Breaks with: `reweigh` left out of `_take_tenants`, or weights left out of the scheduler.
    """

    async def scenario() -> tuple[np.ndarray, np.ndarray]:
        device = _Shared(0.016)
        scheduler = SchedulerConfig(evaluation_budget=BUDGET)
        tenants = [tenant("a", weight=3.0), tenant("b", weight=1.0)]
        async with (
            serving({"simulated": device}, tenants, scheduler=scheduler) as server,
            _calling(server, {"a": 12, "b": 12}),
        ):
            await device.window(8)  # until all take part
            first = await device.window(32)
            server._take_tenants([tenant("a", weight=1.0), tenant("b", weight=3.0)])
            await device.window(8)  # what was bound already
            return first, await device.window(32)

    (a, b), (then_a, then_b) = asyncio.run(scenario())
    assert a / b == pytest.approx(3.0, rel=0.25)
    assert then_b / then_a == pytest.approx(3.0, rel=0.25)
