"""Submitted requests and kept latents against real servers, also ones that die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carv_client import (
    AsyncTeacherClient,
    ClientConfig,
    Conditioning,
    DrawPlanner,
    Estimate,
    InvalidRequestError,
    TeacherClient,
)
from carv_server.config import ServerConfig
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.support.oracle import EVENT_SHAPE
from tests.support.process import ServerProcess
from tests.support.until import until

LATENTS = np.random.default_rng(7).normal(size=(2, *EVENT_SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def client(analytic_server: str) -> Iterator[TeacherClient]:
    with TeacherClient(ClientConfig(address=analytic_server, max_in_flight=64)) as client:
        yield client


@pytest.fixture(scope="module")
def component(client: TeacherClient) -> Conditioning:
    return client.create_conditioning(class_id=1)


def test_64_in_flight_give_what_64_calls_give(
    client: TeacherClient, component: Conditioning
) -> None:
    coming = [client.submit(LATENTS, component, draws=4, seed=seed) for seed in range(64)]
    for seed, future in enumerate(coming):
        found = future.result(30)
        assert found.seed == seed
        expected = client.estimate_gradient(LATENTS, component, draws=4, seed=seed)
        # Microbatches differ, and with them the order of float32 sums.
        np.testing.assert_allclose(found.gradient, expected.gradient, atol=1e-5)


def test_a_seed_given_at_submission_repeats_the_draws(
    client: TeacherClient, component: Conditioning
) -> None:
    first = client.submit(LATENTS, component, draws=4).result(30)
    again = client.estimate_gradient(LATENTS, component, draws=4, seed=first.seed)
    np.testing.assert_allclose(again.gradient, first.gradient, atol=1e-5)


def test_every_violation_comes_out_of_the_future(
    client: TeacherClient, component: Conditioning
) -> None:
    coming = client.submit(LATENTS[:, :1], component, draws=0)
    with pytest.raises(InvalidRequestError) as caught:
        coming.result(30)
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"latents.shape", "sampling.draws"}


def test_kept_latents_give_what_the_latents_give(
    client: TeacherClient, component: Conditioning
) -> None:
    kept = client.keep_latents(LATENTS)
    assert kept.expire_time is not None
    assert client.keep_latents(LATENTS) == kept, "the same content has the same handle"
    expected = client.estimate_gradient(LATENTS, component, draws=4, seed=3).gradient
    by_handle = [
        client.estimate_gradient(kept, component, draws=4, seed=3).gradient,
        client.submit(kept, component, draws=4, seed=3).result(30).gradient,
    ]
    for gradient in by_handle:
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::carv_client.AmortisationWarning")  # of times as they were
def test_the_planner_counts_overlapped_work_in_full(
    client: TeacherClient, component: Conditioning
) -> None:
    """On a clock of our own: 0.5 s upstream a step, all of it while a request is in flight."""
    now = [0.0]
    planner = DrawPlanner(clock=lambda: now[0], warm_up=2)
    pending: Future[Estimate] | None = None
    for seed in range(8):
        with planner.upstream():
            now[0] += 0.5
        following = client.submit(LATENTS, component, draws="auto", planner=planner, seed=seed)
        if pending is not None:
            assert pending.result(30).draws is not None
        pending = following
    assert pending is not None
    pending.result(30)
    costs = planner.costs
    assert costs is not None
    assert costs.upstream_seconds * 2 == pytest.approx(0.5, rel=0.3)  # R = 2
    assert planner.plan() is not None


async def all_are_there(server: RunningServer, coming: Sequence[asyncio.Future[Estimate]]) -> None:
    """Until what is not answered has come to the server."""
    admission = server._front._admission
    await until(
        lambda: sum(each.done() for each in coming) + admission._requests == len(coming),
        f"{len(coming)} requests are answered or there",
    )


def test_no_request_is_lost_with_a_server_that_is_killed_or_stopped(tmp_path: Path) -> None:
    """Three servers in turn at one address; requests go on over all of them, and each is
    answered with the draws of its seed. Nothing is learned from the past, which a server takes
    with it."""
    options: dict[str, Any] = {"draws": 2, "proposal": "prior", "control_variate": "none"}
    seeds = range(16)
    (tmp_path / "simulated.json").write_text(
        json.dumps({"event_shape": EVENT_SHAPE, "launch_seconds": 0.05, "row_seconds": 0.0})
    )
    arguments = ["--teacher", f"simulated={tmp_path}", "--torch-threads", "1"]
    process = ServerProcess([*arguments, "--evaluation-budget", "4"])

    def successor(address: str) -> RunningServer:
        teacher = SimulatedTeacher(EVENT_SHAPE, DeviceTiming(0.02, 0.0))
        scheduler = SchedulerConfig(evaluation_budget=2)
        config = ServerConfig(address=address, scheduler=scheduler, drain_seconds=20.0)
        return RunningServer(config, {"simulated": teacher})

    async def main(address: str) -> None:
        config = ClientConfig(
            address=address,
            max_in_flight=len(seeds),
            retry_attempts=1000,
            retry_initial_seconds=0.02,
            retry_max_seconds=0.1,
        )
        async with AsyncTeacherClient(config) as client:
            kept = await client.keep_latents(LATENTS)
            expected = await asyncio.gather(
                *(client.estimate_gradient(kept, **options, seed=seed) for seed in seeds)
            )

            async def submit() -> list[asyncio.Future[Estimate]]:
                """All on their way, one of them answered."""
                coming = [await client.submit(kept, **options, seed=seed) for seed in seeds]
                await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
                return coming

            async def check(coming: list[asyncio.Future[Estimate]]) -> None:
                for found, wanted in zip(await asyncio.gather(*coming), expected, strict=True):
                    assert found.seed == wanted.seed
                    np.testing.assert_allclose(
                        found.gradient, wanted.gradient, rtol=1e-4, atol=1e-5
                    )

            await check(await submit())
            coming = await submit()
            process.process.kill()
            assert not all(future.done() for future in coming)
            process.process.wait()
            async with successor(address) as server:
                await check(coming)
                coming = await submit()
                await all_are_there(server, coming)  # what comes later is refused
                await server.drain()
                await asyncio.wait(coming, timeout=20.0)
                assert all(future.done() for future in coming), "a drain lets them finish"
            async with successor(address):
                await check(coming)
                await check(await submit())

    with process:
        asyncio.run(main(process.address))
