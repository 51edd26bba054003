"""Replicas in processes of their own: the same answers, through the loss of any of them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carv_server.replicas import ray_pool
from carv_server.replicas.autoscale import ScalePolicy
from carv_server.replicas.protocol import ReplicaLost, ReplicaStartError
from carv_server.replicas.ray_cluster import RayCluster, open_cluster
from carv_server.replicas.ray_config import RayConfig
from carv_server.replicas.ray_pool import RayPool
from carv_server.replicas.ray_replica import RayReplica
from carv_server.teachers.analytic import load_analytic
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.replicas.pools import CONFIG, Served, pool_of, serving, simulated_folder, until
from tests.replicas.processes import alive, descendants
from tests.replicas.wire_works import make
from tests.server.closed_form import relative_error
from tests.support.oracle import EVENT_SHAPE, write_oracle_folder

Answer = tuple[np.ndarray, bytes, int]

TOLERANCE = 1e-5
LARGE = (8, 64, 64)  # 128 KiB a render: by shared memory
SAME_LAW = SimulatedTeacher(LARGE, DeviceTiming(0.0, 0.0))
ONE = ScalePolicy(min_replicas=1, max_replicas=1)
GONE = (FileNotFoundError, ProcessLookupError)  # of what /proc named a moment ago


# Ray leaves some of its daemons to end with their parent.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

Scenario = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Its own, for two small workers and a few more."""
    opened = open_cluster(CONFIG, teachers=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def run() -> Iterator[Scenario]:
    """Runs a coroutine on the one event loop of this module."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def pool(
    cluster: RayCluster, run: Scenario, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayPool]:
    """Two replicas of a simulated device; a test leaves it with two."""
    folder = simulated_folder(tmp_path_factory.mktemp("simulated"), 0.02, 0.002, *LARGE)
    made: list[RayPool] = []

    async def start() -> None:
        made.append(pool_of(cluster, folder, CONFIG, 64))
        await made[0].start()

    run(start())
    yield made[0]
    run(made[0].stop())


@asynccontextmanager
async def _started(
    cluster: RayCluster, folder: Path, config: RayConfig, budget: int
) -> AsyncIterator[RayPool]:
    pool = pool_of(cluster, folder, config, budget)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


def test_the_same_draws_and_gradients_as_in_process(
    cluster: RayCluster, pool: RayPool, run: Scenario, tmp_path: Path
) -> None:
    """A budget of 24 cuts every request; both replicas and both ways of latents take part."""
    cases = [(1, 64, 3), (2, 5, 1), (3, 40, 4)]

    async def answers(served: Served, shape: tuple[int, ...]) -> list[Answer]:
        return await asyncio.gather(
            *(
                served.estimate(seed, draws=draws, renders=renders, shape=shape)
                for seed, draws, renders in cases
            )
        )

    async def compare(
        pool: RayPool, teacher: Teacher, shape: tuple[int, ...], class_id: int | None
    ) -> None:
        async with serving(24, teacher=teacher, class_id=class_id) as here:
            expected = await answers(here, shape)
        async with serving(24, pool=pool, class_id=class_id) as there:
            found = await answers(there, shape)
        assert all(replica.take_busy_seconds() > 0 for replica in pool.warm)
        gc.collect()
        assert len(pool._latents) == 0, "shared memory is freed with its request"
        _check(found, expected)

    async def scenario() -> None:
        await compare(pool, SAME_LAW, LARGE, None)
        folder = write_oracle_folder(tmp_path)
        async with _started(cluster, folder, CONFIG, 24) as mixtures:
            teacher = load_analytic(folder, torch.device("cpu"))
            await compare(mixtures, teacher, EVENT_SHAPE, 1)

    run(scenario())


def _check(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """Work counted twice, or not at all, would not give this mean of exactly K draws."""
    for (gradient, draws, spent), (right, same, all_of_them) in zip(found, expected, strict=True):
        assert draws == same and spent == all_of_them
        assert relative_error(gradient, right) < TOLERANCE


async def _through_a_loss(pool: RayPool, lose: Callable[[int], Awaitable[None]]) -> None:
    """Under load, lose one of two replicas; every answer is right, and two are warm again."""

    async def load(served: Served, requests: int) -> list[Answer]:
        calls = [served.estimate(seed, draws=32, shape=LARGE) for seed in range(requests)]
        return await asyncio.gather(*calls)

    async with serving(8, teacher=SAME_LAW) as here:
        expected = await load(here, 12)
    async with serving(8, pool=pool) as there:
        first, second = pool.warm
        under_way = asyncio.create_task(load(there, 12))
        await until(lambda: first._running > 0, "a microbatch on the first replica")
        await lose(first.pid)
        _check(await under_way, expected)
        await until(lambda: len(pool.warm) == 2, "another replica is warm")
        assert first not in pool.warm and second in pool.warm
        await until(lambda: not alive(first.pid), "the lost process is gone")
        (another,) = (replica for replica in pool.warm if replica is not second)
        _check(await load(there, 4), expected[:4])
        assert another.take_busy_seconds() > 0, "it works"


def test_a_killed_replica_costs_no_request_and_comes_back(pool: RayPool, run: Scenario) -> None:
    """Broken by one attempt in place of three at a microbatch that is lost with its replica."""

    async def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(pool.warm) == 1, "its loss is seen")

    run(_through_a_loss(pool, kill))


def test_a_frozen_replica_is_found_by_its_probe_ended_and_replaced(
    pool: RayPool, run: Scenario
) -> None:
    """Broken by a probe without a timeout of its own."""

    async def freeze(pid: int) -> None:
        (replica,) = (each for each in pool.warm if each.pid == pid)
        replica._config = replace(replica._config, probe_timeout_seconds=1.5)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: len(pool.warm) == 1, "its silence is seen")
        # A probe may have been out already. A forward's time is neither.
        limits = (1.5, CONFIG.probe_timeout_seconds)
        assert replica._lost.result() in {f"no answer within {limit:g} s" for limit in limits}
        assert alive(pid)

    run(_through_a_loss(pool, freeze))


def test_a_forward_that_does_not_end_is_a_lost_replica(
    cluster: RayCluster, run: Scenario, tmp_path: Path
) -> None:
    folder = simulated_folder(tmp_path, 60.0, 0.0, *EVENT_SHAPE)
    config = replace(CONFIG, forward_timeout_seconds=0.5, scale=ONE)

    async def scenario() -> None:
        async with _started(cluster, folder, config, 8) as pool:
            (replica,) = pool.warm
            other = asyncio.create_task(replica.run([make(1)], lambda _: True))
            with pytest.raises(ReplicaLost, match=r"no answer within 0\.5 s"):
                await replica.run([make(1)], lambda _: True)
            with pytest.raises(ReplicaLost):
                await other
            with pytest.raises(ReplicaLost):
                await replica.run([make(1)], lambda _: True)
            await until(lambda: not alive(replica.pid), "its process has ended")

    run(scenario())


def test_replicas_follow_the_queue_between_their_bounds(
    cluster: RayCluster, run: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers that ask again keep some 3 s of work waiting for as long as a start takes."""
    monkeypatch.setattr(ray_pool, "_LOOK_SECONDS", 0.1)
    folder = simulated_folder(tmp_path, 0.01, 0.01, *EVENT_SHAPE)
    policy = ScalePolicy(
        min_replicas=1,
        max_replicas=2,
        up_seconds=0.5,
        up_after_seconds=0.2,
        down_after_seconds=0.5,
        cool_down_seconds=0.1,
    )

    def devices(served: Served) -> float | None:
        return served.server.observability.registry.get_sample_value("carv_devices")

    async def scenario() -> None:
        async with (
            _started(cluster, folder, replace(CONFIG, scale=policy), 8) as pool,
            serving(8, pool=pool) as served,
        ):
            first = pool.warm
            assert len(first) == 1 and pool.target == 1
            assert devices(served) == 1
            enough = asyncio.Event()

            async def ask_again(seed: int) -> None:
                while not enough.is_set():
                    await served.estimate(seed, draws=32, shape=EVENT_SHAPE)

            load = [asyncio.create_task(ask_again(seed)) for seed in range(8)]
            await until(lambda: len(pool.warm) == 2, "a second replica for seconds of work")
            second = pool.warm[1]
            assert devices(served) == pool.target == 2
            enough.set()
            await asyncio.gather(*load)
            await until(lambda: pool.target == 1, "one is enough for no work")
            await until(lambda: not alive(second.pid), "the second has ended")
            assert pool.warm == first

    run(scenario())


def test_a_teacher_that_cannot_be_loaded_is_said_at_the_start(
    cluster: RayCluster, run: Scenario, tmp_path: Path
) -> None:
    async def scenario() -> None:
        pool = pool_of(cluster, tmp_path / "nothing", replace(CONFIG, scale=ONE), 8)
        with pytest.raises(ReplicaStartError, match="nothing"):
            await pool.start()

    run(scenario())


def test_weights_that_are_not_as_stated_reach_no_replica(
    cluster: RayCluster, run: Scenario, tmp_path: Path
) -> None:
    """Breaks with: digests that stay on this side of the call."""
    folder = simulated_folder(tmp_path, 0.0, 0.0, *EVENT_SHAPE)
    stated = {"simulated.json": "0" * 64}

    async def scenario() -> None:
        pool = pool_of(cluster, folder, replace(CONFIG, scale=ONE), 8, stated)
        with pytest.raises(ReplicaStartError, match=r"simulated\.json: expected sha256 0000"):
            await pool.start()

    run(scenario())


def test_a_replica_that_finds_no_place_is_given_up(
    cluster: RayCluster, run: Scenario, tmp_path: Path
) -> None:
    folder = simulated_folder(tmp_path, 0.0, 0.0, *EVENT_SHAPE)
    config = replace(CONFIG, gpus_per_replica=3.0, start_seconds=0.5)

    async def scenario() -> None:
        with pytest.raises(ReplicaStartError, match=r"3 GPUs, of which [0-9.]+ and 0 are free"):
            await pool_of(cluster, folder, config, 8).start()

    run(scenario())


def test_other_weights_than_the_others_hold_are_refused(
    cluster: RayCluster, pool: RayPool, run: Scenario, tmp_path: Path
) -> None:
    """As on a second machine whose copy of the folder differs."""
    folder = simulated_folder(tmp_path, 0.001, 0.0, *LARGE)

    async def scenario() -> None:
        stranger = pool_of(cluster, folder, CONFIG, 64)._spawn()
        with pytest.raises(ReplicaStartError, match="a replica loaded other weights"):
            await pool._begin(stranger)
        stranger.kill()

    run(scenario())


def test_a_budget_is_measured_once_for_all(
    cluster: RayCluster, run: Scenario, tmp_path: Path
) -> None:
    """Breaks with: replicas that start together, each of which measures."""
    folder = simulated_folder(tmp_path, 0.004, 0.0, *EVENT_SHAPE)
    told: list[int | None] = []

    class Told(RayPool):
        def _spawn(self) -> RayReplica:
            told.append(self._settings.preparation.evaluation_budget)
            return super()._spawn()

    async def scenario() -> None:
        settings = pool_of(cluster, folder, CONFIG, None)._settings
        pool = Told(cluster, settings, CONFIG)
        await pool.start()
        try:
            first, second = told
            assert first is None, "it measures"
            assert second == pool.evaluation_budget >= 1, "it is told what the first measured"
            assert [replica.evaluation_budget for replica in pool.warm] == [second] * 2
        finally:
            await pool.stop()

    run(scenario())


def test_every_port_of_a_local_cluster_is_on_the_loopback_interface(cluster: RayCluster) -> None:
    ours = descendants(os.getpid())
    names: set[str] = set()
    for pid in ours:
        with suppress(*GONE):
            names.add(Path(f"/proc/{pid}/comm").read_text().strip())
    assert {"raylet", "gcs_server"} <= names
    sockets = {inode for pid in ours | {os.getpid()} for inode in _sockets(pid)}
    addresses = [address for inode, address in _listeners() if inode in sockets]
    assert len(addresses) >= 4
    # 127.0.0.1 and ::ffff:127.0.0.1 as the kernel writes them.
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def _sockets(pid: int) -> list[str]:
    found: list[str] = []
    with suppress(*GONE):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(*GONE):
                target = os.readlink(link)
                if target.startswith("socket:["):
                    found.append(target[8:-1])
    return found


def _listeners() -> list[tuple[str, str]]:
    """(inode, local address in hexadecimal) of every TCP socket that listens."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [(row[9], row[1].partition(":")[0]) for row in rows if row[3] == "0A"]
