"""Tenants over real gRPC on a device with a known speed: quotas, fair shares, and a list that
changes while it is used."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carv.errors import Reason
from carv_client import (
    AsyncTeacherClient,
    AuthenticationError,
    Branch,
    ClientConfig,
    QuotaExceededError,
)
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.settings.tenants import load_tenants
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.support.logs import logged
from tests.support.tenants import serving, tenant, token_of

SHAPE = (1, 4, 4)
FREE = DeviceTiming(0.0, 0.0)


def _teacher(timing: DeviceTiming = FREE) -> SimulatedTeacher:
    return SimulatedTeacher(SHAPE, timing, arithmetic=False)


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
    server: RunningServer, of: str, caller: Caller, draws: int, going: Callable[[], bool]
) -> None:
    """One after the other, each as soon as the one before it is answered."""
    config = ClientConfig(
        address=server.address, token=token_of(of), retry_attempts=1, timeout_seconds=60.0
    )
    latents = np.zeros((1, *SHAPE), np.float32)
    async with AsyncTeacherClient(config) as client:
        handle = await client.create_conditioning(unconditional=True)
        branches = [Branch(handle, 1.0)]
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
        caller = Caller()
        begin = time.perf_counter()
        loops = (
            _loop(server, "a", caller, 5, lambda: time.perf_counter() < begin + seconds)
            for _ in range(4)
        )
        await asyncio.gather(*loops)
        assert caller.refusals > seconds
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


# Slow next to what the machine adds, which is one process's loop for callers and server.
TIMING = DeviceTiming(0.016, 0.004)
BUDGET = 8
ROWS = 4


async def _window(callers: Sequence[Caller], evaluations: int) -> list[Caller]:
    """What callers get from now until it is so many evaluations together: by count, so that
    neither a slow machine nor one that pauses for a while changes what is compared."""

    def total() -> int:
        return sum(caller.evaluations for caller in callers)

    before = [(caller.evaluations, len(caller.microbatches)) for caller in callers]
    enough, latest = total() + evaluations, time.monotonic() + 60.0
    while total() < enough:
        assert time.monotonic() < latest
        await asyncio.sleep(0.005)
    return [
        Caller(caller.evaluations - spent, caller.microbatches[answered:])
        for caller, (spent, answered) in zip(callers, before, strict=True)
    ]


@asynccontextmanager
async def _calling(
    server: RunningServer, loops: Mapping[str, int]
) -> AsyncGenerator[list[Caller], None]:
    """Tenants with so many closed loops each, which go on until the block ends."""
    callers, over = [Caller() for _ in loops], asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for caller, (name, count) in zip(callers, loops.items(), strict=True):
            for _ in range(count):
                tasks.create_task(_loop(server, name, caller, ROWS, lambda: not over.is_set()))
        yield callers
        over.set()


def test_a_flood_takes_no_more_than_its_share() -> None:
    """A tenant with four callers beside one with 24 gets at least 90 % of half of what the device
    gave. Four of its 16 rows go in each microbatch, so that a request waits for four of them: nine
    in ten wait for twice that at most.

    Breaks with: `Call.tenant` left empty (one queue for all: a seventh of the device, and 14
    microbatches).
    """

    async def scenario() -> list[Caller]:
        scheduler = SchedulerConfig(evaluation_budget=BUDGET)
        teachers = {"simulated": _teacher(TIMING)}
        tenants = [tenant("quiet"), tenant("flood")]
        async with (
            serving(teachers, tenants, scheduler=scheduler) as server,
            _calling(server, {"quiet": 4, "flood": 24}) as callers,
        ):
            await _window(callers, 100)  # until all take part
            return await _window(callers, 400)

    quiet, flood = asyncio.run(scenario())
    got = quiet.evaluations, flood.evaluations
    assert quiet.evaluations >= 0.9 * sum(got) / 2, got
    assert float(np.quantile(quiet.microbatches, 0.9)) <= 8.0


def test_weights_are_shares_and_change_while_they_are_used() -> None:
    """Three to one, then one to three, among tenants that both ask for all.

    Breaks with: `reweigh` left out of `_take_tenants`, or weights left out of the scheduler.
    """

    async def scenario() -> tuple[list[Caller], list[Caller]]:
        scheduler = SchedulerConfig(evaluation_budget=BUDGET)
        tenants = [tenant("a", weight=3.0), tenant("b", weight=1.0)]
        teachers = {"simulated": _teacher(DeviceTiming(0.008, 0.002))}
        async with (
            serving(teachers, tenants, scheduler=scheduler) as server,
            _calling(server, {"a": 12, "b": 12}) as callers,
        ):
            await _window(callers, 100)  # until all take part
            first = await _window(callers, 480)
            server._take_tenants([tenant("a", weight=1.0), tenant("b", weight=3.0)])
            await _window(callers, 100)  # what was bound already
            return first, await _window(callers, 480)

    (a, b), (then_a, then_b) = asyncio.run(scenario())
    assert a.evaluations / b.evaluations == pytest.approx(3.0, rel=0.25)
    assert then_b.evaluations / then_a.evaluations == pytest.approx(3.0, rel=0.25)


def _table(*names: str) -> str:
    return "".join(
        f'[[tenants]]\nid = "{name}"\ntoken_sha256 = ["{tenant(name).token_sha256[0].hex()}"]\n'
        for name in names
    )


def test_the_file_of_tenants_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new tenant gets in and an old one is out without a restart; a broken file changes
    nothing, the log says what is wrong with it, and the next sound one is taken.

    Breaks with: a watcher that is not started, or `Watcher.look` without its `except`.
    """

    async def scenario() -> None:
        file = tmp_path / "tenants.toml"
        file.write_text(_table("a"))
        tenants = load_tenants(file, ["simulated"])

        async def allowed(server: RunningServer, name: str) -> bool:
            async with AsyncTeacherClient(server.address, token=token_of(name)) as client:
                try:
                    await client.list_teachers()
                except AuthenticationError:
                    return False
                return True

        async def until(server: RunningServer, **wanted: bool) -> None:
            for _ in range(100):
                if {name: await allowed(server, name) for name in wanted} == wanted:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"not {wanted}")

        async with serving({"simulated": _teacher()}, tenants, file=file) as server:
            await until(server, a=True, b=False)
            with caplog.at_level(logging.INFO, "carv_server"):
                file.write_text(_table("a", "b") + '[[tenants]]\nid = "b"\nweigth = 1\n')
                await logged(caplog, "kept as they were")
            await asyncio.sleep(0.3)  # some more looks at the file
            await until(server, a=True, b=False)
            assert "did you mean 'weight'" in caplog.text
            assert caplog.text.count("kept as they were") == 1
            file.write_text("[[tenants]]\nid = [1]\n")
            await logged(caplog, "kept as they were", 2)
            file.write_text(_table("a", "b"))
            await until(server, a=True, b=True)
            file.write_text(_table("b"))
            await until(server, a=False, b=True)
            file.unlink()
            await logged(caplog, "kept as they were", 3)
            await until(server, a=False, b=True)

    asyncio.run(scenario())
