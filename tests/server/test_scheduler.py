"""The scheduler before devices of known timing, in virtual time: what runs, when, and with whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.protocol import (
    Branch,
    Conditioning,
    MicrobatchResult,
    Replica,
    Wanted,
    Work,
)
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.scheduling.admission import is_admitted
from carv_server.scheduling.fair_queue import Waiting
from carv_server.scheduling.job import JobResult
from carv_server.scheduling.snapshot import MicrobatchReport
from carv_server.scheduling.terms import Terms
from carv_server.teachers.simulated import DeviceTiming
from tests.server.teachers import GatedTeacher, oracle_teacher
from tests.support.device import TimedReplica, work_of
from tests.support.load import Callers, Measured, load
from tests.support.virtual_time import run_virtually

LAUNCH, ROW, BUDGET = 0.006, 0.001, 8
TIMING = DeviceTiming(LAUNCH, ROW)
FULL = TIMING.seconds(BUDGET)
GPU = DeviceTiming(0.060, 0.0025)
NOW = Terms()


@asynccontextmanager
async def _scheduler(*replicas: Replica, **settings: Any):
    settings = {"evaluation_budget": BUDGET, **settings}
    config = SchedulerConfig(**settings)
    scheduler = Scheduler(replicas, config, asyncio.get_running_loop().time)
    scheduler.start()
    yield scheduler
    await scheduler.stop()


def _time() -> float:
    return asyncio.get_running_loop().time()


def _start(coroutine: Coroutine[Any, Any, JobResult]) -> asyncio.Task[JobResult]:
    return asyncio.create_task(coroutine)


async def _learn(scheduler: Scheduler) -> None:
    """Until the cost of a microbatch is known."""
    for rows in (1, 4, 8, 2) * 4:
        await scheduler.submit(work_of(rows, seed=999), Terms(caller=f"once {rows}"))
    await asyncio.sleep(1.0)


async def _reason(submitted: Coroutine[Any, Any, JobResult] | asyncio.Task[JobResult]) -> Reason:
    with pytest.raises(RequestError) as caught:
        await submitted
    return caught.value.reason


def _is_whole(result: JobResult, rows: int) -> bool:
    """Every draw once, in order."""
    assert result.predictions is not None
    return result.predictions.flatten().tolist() == list(range(rows))


def _measured(callers: Sequence[Callers], hold: float = 0.75, seconds: float = 4.0) -> Measured:
    config = SchedulerConfig(evaluation_budget=BUDGET, hold_fraction=hold)
    replica = TimedReplica(TIMING, transit_seconds=0.0001)
    return run_virtually(load([replica], config, callers, seconds))


# Batches form by themselves.


def test_four_callers_share_a_launch_and_wait_less_for_it() -> None:
    """Two and two would be 0.4375 of the device's best, all four at once 0.71 less the return
    trip: 1 ms at most here, 14 / 2 / (10 + 0.2 + 0.75) = 0.64."""
    callers = [Callers(4, think_seconds=0.0005)]
    held, plain = _measured(callers), _measured(callers, hold=0.0)
    assert held.share(TIMING, BUDGET) > 0.63
    assert plain.share(TIMING, BUDGET) == pytest.approx(0.4375, abs=0.01)
    for q in (0.5, 0.99):
        assert held.quantile(q) < plain.quantile(q)


def test_sixteen_callers_keep_the_device_full_and_busy() -> None:
    found = _measured([Callers(16, think_seconds=0.002)])
    assert found.share(TIMING, BUDGET) > 0.98
    assert found.snapshot.mean_fill > 0.98


def test_nobody_is_held_for_callers_of_random_habits() -> None:
    """20 ms between requests, give or take 10: no forecast of those is worth waiting for."""
    found = _measured([Callers(8, think_seconds=0.02)])
    assert found.snapshot.held_seconds < 0.001 * 5.0


@pytest.mark.parametrize("think", [0.0, 0.0005, 0.05])
def test_a_lone_caller_never_waits(think: float) -> None:
    found = _measured([Callers(1, think_seconds=think)])
    assert found.quantile(1.0) == pytest.approx(TIMING.seconds(1) + 0.0002, abs=1e-6)
    assert found.snapshot.held_seconds == 0.0


def test_rows_are_bound_to_the_second_microbatch_as_late_as_can_be() -> None:
    async def scenario() -> None:
        replica = TimedReplica(TIMING)
        async with _scheduler(replica) as scheduler:
            await _learn(scheduler)
            replica.forwards.clear()
            first = _start(scheduler.submit(work_of(8, seed=1), NOW))
            await asyncio.sleep(0.001)
            waiting = [_start(scheduler.submit(work_of(1, seed=2), NOW)) for _ in range(3)]
            await asyncio.sleep(FULL * 0.5)
            assert scheduler.snapshot().replicas[0].microbatches_in_flight == 1
            late = [_start(scheduler.submit(work_of(1, seed=3), NOW)) for _ in range(5)]
            await asyncio.gather(first, *waiting, *late)
        assert [forward.rows for forward in replica.forwards] == [8, 8]
        begin, end = replica.forwards[1].begin, replica.forwards[0].end
        assert begin == pytest.approx(end, abs=1e-9), "it was there when the device was free"

    run_virtually(scenario())


# Long and short, tenants.


def test_a_short_request_behind_a_long_one_waits_two_microbatches_at_most() -> None:
    async def scenario() -> None:
        replica = TimedReplica(TIMING)
        async with _scheduler(replica) as scheduler:
            await _learn(scheduler)
            replica.forwards.clear()
            long = _start(scheduler.submit(work_of(1024, seed=1, cell=2), NOW))
            arrived: list[float] = []
            for i in range(40):  # at every phase of a microbatch
                await asyncio.sleep(FULL * (2.0 + i / 40))
                arrived.append(_time())
                await scheduler.submit(work_of(1, seed=100 + i), NOW)
                assert len([f for f in replica.forwards if f.end > arrived[-1]]) <= 2 + 1
            assert _is_whole(await long, 1024)
        for i, time in enumerate(arrived):
            (own,) = [f for f in replica.forwards if f.rows_of(100 + i)]
            before = [f for f in replica.forwards if f.end > time and f.begin < own.begin]
            assert len(before) <= 2
        for forward in replica.forwards:
            for seed, first, rows in forward.works:
                assert seed != 1 or (first % 2 == 0 and rows % 2 == 0), "a cell was cut"

    run_virtually(scenario())


def test_a_flood_leaves_a_tenant_its_share() -> None:
    quiet = Callers(16, tenant="quiet", think_seconds=0.002)
    flood = Callers(64, rows=2, tenant="flood")
    alone, beside = _measured([quiet]), _measured([quiet, flood])
    assert beside.share(TIMING, BUDGET) > 0.9 * 0.5
    assert beside.share(TIMING, BUDGET) + beside.share(TIMING, BUDGET, 1) > 0.97
    # Half the rate is twice the time from one request to the next, of which 2 ms are the caller's.
    assert beside.quantile(0.99) + 0.002 < 2.1 * (alone.quantile(0.99) + 0.002)


def test_a_flood_shuts_no_other_tenant_out_of_the_queue() -> None:
    async def scenario() -> None:
        async with _scheduler(max_waiting_evaluations=20, max_waiting_requests=4) as scheduler:
            flood = [_start(scheduler.submit(work_of(8), Terms(tenant="flood"))) for _ in range(6)]
            await asyncio.sleep(0.0)
            assert scheduler.waiting == Waiting(2, 16)
            with pytest.raises(RequestError) as caught:
                await flood[2]
            assert caught.value.reason is Reason.QUEUE_FULL
            assert caught.value.retry_delay_seconds is not None
            quiet = [_start(scheduler.submit(work_of(5), Terms(tenant="quiet"))) for _ in range(3)]
            await asyncio.sleep(0.0)
            with pytest.raises(RequestError) as caught:
                await quiet[2]
            assert "10 evaluations of 2 requests of yours" in caught.value.message
            assert scheduler.snapshot().tenants == {
                "flood": Waiting(2, 16),
                "quiet": Waiting(2, 10),
            }
            assert scheduler.snapshot().refused == 5
            for task in (*flood, *quiet):
                task.cancel()
            await asyncio.gather(*flood, *quiet, return_exceptions=True)
            assert scheduler.waiting == Waiting(0, 0)

    run_virtually(scenario())


def test_admission_is_bounded_whatever_the_tenants() -> None:
    config = SchedulerConfig(max_waiting_evaluations=100, max_waiting_requests=10)

    def admitted(evaluations: int, total: Waiting, own: Waiting, share: float) -> bool:
        return is_admitted(evaluations, total, own, share, config)

    nothing = Waiting(0, 0)
    assert admitted(1000, nothing, nothing, 1.0)
    assert admitted(10, Waiting(9, 90), Waiting(9, 90), 1.0)
    assert not admitted(11, Waiting(9, 90), Waiting(9, 90), 1.0)
    assert not admitted(1, Waiting(10, 10), Waiting(10, 10), 1.0)
    assert admitted(50, Waiting(9, 100), Waiting(1, 0), 0.5)
    assert not admitted(51, Waiting(9, 100), Waiting(1, 0), 0.5)
    assert admitted(1, Waiting(10, 20), Waiting(4, 4), 0.5)
    assert not admitted(1, Waiting(10, 20), Waiting(5, 5), 0.5)
    assert admitted(90, Waiting(9, 199), nothing, 0.01)
    assert not admitted(1, Waiting(9, 200), nothing, 0.01)
    assert not admitted(1, Waiting(20, 20), nothing, 0.01)


# What nobody waits for.


def test_a_hundred_cancelled_in_the_queue_are_gone_at_once_and_none_is_executed() -> None:
    async def scenario() -> None:
        replica = TimedReplica(TIMING)
        async with _scheduler(replica) as scheduler:
            await _learn(scheduler)
            replica.forwards.clear()
            running = _start(scheduler.submit(work_of(8, seed=1), NOW))
            await asyncio.sleep(0.001)
            queued = [_start(scheduler.submit(work_of(3, seed=2), NOW)) for _ in range(100)]
            await asyncio.sleep(0.001)
            assert scheduler.waiting == Waiting(100, 300)
            for task in queued:
                task.cancel()
            await asyncio.gather(*queued, return_exceptions=True)
            assert scheduler.waiting == Waiting(0, 0)
            assert scheduler.snapshot().cancelled == 100
            await running
            await asyncio.sleep(1.0)
            assert scheduler.snapshot().replicas[0].evaluations_in_flight == 0
        assert [forward.works for forward in replica.forwards] == [((1, 0, 8),)]

    run_virtually(scenario())


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_what_ends_behind_another_microbatch_does_not_reach_the_device(how: str) -> None:
    """Its own was formed already, and handed over."""

    async def scenario() -> None:
        replica = TimedReplica(TIMING)
        async with _scheduler(replica) as scheduler:
            await _learn(scheduler)
            replica.forwards.clear()
            free = _time() + FULL
            first = _start(scheduler.submit(work_of(8, seed=1), NOW))
            await asyncio.sleep(0.001)
            stays = _start(scheduler.submit(work_of(3, seed=2), NOW))
            terms = Terms(deadline=free - 1e-4) if how == "expired" else NOW
            leaves = _start(scheduler.submit(work_of(5, seed=3), terms))
            await asyncio.sleep(FULL - 0.001 - 5e-4)
            assert scheduler.snapshot().replicas[0].microbatches_in_flight == 2
            if how == "cancelled":
                leaves.cancel()
            await asyncio.gather(first, stays, leaves, return_exceptions=True)
            assert leaves.cancelled() or isinstance(leaves.exception(), RequestError)
            snapshot = scheduler.snapshot()
            assert (snapshot.expired, snapshot.cancelled) == (
                (1, 0) if how == "expired" else (0, 1)
            )
        assert [forward.works for forward in replica.forwards] == [((1, 0, 8),), ((2, 0, 3),)]

    run_virtually(scenario())


def test_the_in_process_replica_asks_in_its_thread_just_before_the_forward() -> None:
    async def scenario() -> None:
        teacher = GatedTeacher()
        asked: list[str] = []
        left = threading.Event()

        def wanted(_: int) -> bool:
            asked.append(threading.current_thread().name)
            return not left.is_set()

        with ThreadPoolExecutor(1, thread_name_prefix="device") as device:
            replica = InProcessReplica(teacher, device)
            works = [_oracle_work(5), _oracle_work(6)]
            first = replica.run(works[:1], wanted)
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            second = replica.run(works, lambda index: wanted(index) or index == 1)
            await asyncio.sleep(0.0)
            left.set()
            teacher.gate.set()
            assert (await first).results[0] is not None
            dropped, kept = (await second).results
        assert dropped is None and kept is not None and kept.predictions is not None
        assert teacher.forwards == [[5], [6]]
        assert len(asked) == 3 and all(name.startswith("device") for name in asked)

    asyncio.run(scenario())


def _oracle_work(timestep: int) -> Work:
    label = Conditioning("label", {"class_label": torch.tensor(0)})
    shape = oracle_teacher().description.event_shape
    return replace(
        work_of(1),
        latents=np.zeros((1, *shape), dtype=np.float32),
        branches=[Branch([label])],
        timesteps=np.array([timestep]),
    )


# Replicas that come and go.


def test_without_a_replica_requests_wait_until_their_deadline_or_until_one_comes() -> None:
    async def scenario() -> None:
        async with _scheduler() as scheduler:
            patient = _start(scheduler.submit(work_of(3), NOW))
            begun = _time()
            assert (
                await _reason(scheduler.submit(work_of(2), Terms(deadline=begun + 5.0)))
                is Reason.DEADLINE_EXPIRED
            )
            assert _time() == pytest.approx(begun + 5.0, abs=0.01)
            assert scheduler.waiting == Waiting(1, 3)
            replica = TimedReplica(TIMING)
            scheduler.add_replica(replica)
            scheduler.add_replica(replica)
            assert len(scheduler.snapshot().replicas) == 1
            assert _is_whole(await patient, 3)
            # A deadline in the past is refused before it waits.
            assert (
                await _reason(scheduler.submit(work_of(2), Terms(deadline=_time())))
                is Reason.DEADLINE_EXPIRED
            )
        assert [forward.rows for forward in replica.forwards] == [3]

    run_virtually(scenario())


def test_a_replica_that_is_removed_ends_what_it_runs_and_gets_no_more() -> None:
    async def scenario() -> None:
        goes, stays = TimedReplica(TIMING), TimedReplica(TIMING)
        async with _scheduler(goes, stays) as scheduler:
            long = _start(scheduler.submit(work_of(200), NOW))
            await asyncio.sleep(FULL * 3.5)
            await scheduler.remove_replica(goes)
            ran = len(goes.forwards)
            assert ran == 4 and goes.forwards[-1].end == pytest.approx(_time())
            assert _is_whole(await long, 200)
            await scheduler.remove_replica(goes)
        assert len(goes.forwards) == ran
        assert sum(f.rows for f in [*goes.forwards, *stays.forwards]) == 200

    run_virtually(scenario())


@pytest.mark.parametrize("when", [0.0101, 0.033, 0.0419])
def test_a_microbatch_lost_with_its_replica_runs_elsewhere_once(when: float) -> None:
    async def scenario() -> None:
        dies, stays = TimedReplica(TIMING), TimedReplica(TIMING)
        async with _scheduler(dies, stays) as scheduler:
            await _learn(scheduler)
            dies.forwards.clear()
            stays.forwards.clear()
            dies.lose_at = _time() + when
            long = _start(scheduler.submit(work_of(100, seed=1, cell=2), NOW))
            short = [_start(scheduler.submit(work_of(3, seed=2 + i), NOW)) for i in range(9)]
            assert _is_whole(await long, 100)
            for task in short:
                assert _is_whole(await task, 3)
            snapshot = scheduler.snapshot()
            assert len(snapshot.replicas) == 1
            assert 1 <= snapshot.lost_microbatches <= 2
            assert (snapshot.waiting, snapshot.failed) == (Waiting(0, 0), 0)
        forwards = [*dies.forwards, *stays.forwards]
        assert sum(forward.rows_of(1) for forward in forwards) == 100
        assert all(sum(f.rows_of(2 + i) for f in forwards) == 3 for i in range(9))

    run_virtually(scenario())


def test_a_request_under_which_three_replicas_are_lost_fails_and_the_others_go_on() -> None:
    class Poisoned(TimedReplica):
        """Dies of requests with seed 13."""

        async def run(self, works: Any, wanted: Callable[[int], bool]) -> Any:
            if any(work.seed == 13 for work in works):
                self.lose_at = _time() + LAUNCH
            return await super().run(works, wanted)

    async def scenario() -> None:
        replicas = [Poisoned(TIMING) for _ in range(4)]
        async with _scheduler(*replicas[:1]) as scheduler:
            poison = _start(scheduler.submit(work_of(BUDGET, seed=13), NOW))
            healthy = _start(scheduler.submit(work_of(2, seed=1), NOW))
            for replica in replicas[1:]:
                await asyncio.sleep(1.0)
                assert scheduler.snapshot().replicas == ()
                scheduler.add_replica(replica)
            assert await _reason(poison) is Reason.REPLICA_FAILED
            assert _is_whole(await healthy, 2)
            assert scheduler.snapshot().lost_microbatches == 3
            assert scheduler.snapshot().failed == 1

    run_virtually(scenario())


def test_without_a_replica_requests_wait_a_while_and_then_are_refused() -> None:
    async def scenario() -> None:
        first, second = TimedReplica(TIMING), TimedReplica(TIMING)
        async with _scheduler(first) as scheduler:
            await scheduler.remove_replica(first)
            await asyncio.sleep(5.0)
            early = _start(scheduler.submit(work_of(1), NOW))
            await asyncio.sleep(6.0)
            with pytest.raises(RequestError) as refused:
                await scheduler.submit(work_of(1), NOW)
            assert refused.value.reason is Reason.NO_REPLICA
            assert refused.value.retry_delay_seconds
            scheduler.add_replica(second)
            assert _is_whole(await early, 1)
            assert _is_whole(await scheduler.submit(work_of(1), NOW), 1)

    run_virtually(scenario())


@pytest.mark.parametrize("count", [2, 4])
def test_a_long_request_is_on_all_replicas_at_once(count: int) -> None:
    async def scenario(replicas: int) -> float:
        async with _scheduler(
            *(TimedReplica(GPU, transit_seconds=0.002) for _ in range(replicas)),
            evaluation_budget=64,
        ) as scheduler:
            for _ in range(10):
                await scheduler.submit(work_of(64, seed=1), NOW)
                await scheduler.submit(work_of(16 * replicas, seed=1), NOW)
            begun = _time()
            assert _is_whole(await scheduler.submit(work_of(256, cell=2), NOW), 256)
            return _time() - begun

    one, several = run_virtually(scenario(1)), run_virtually(scenario(count))
    assert one / several / count > (0.95 if count == 2 else 0.9)


def test_an_idle_replica_takes_its_part_where_a_launch_is_worth_it() -> None:
    async def scenario() -> None:
        replicas = [TimedReplica(GPU) for _ in range(4)]
        async with _scheduler(*replicas, evaluation_budget=64) as scheduler:
            for _ in range(20):  # of all four
                await asyncio.gather(
                    *(scheduler.submit(work_of(n, seed=1), NOW) for n in (64, 64, 64, 8))
                )
            for replica in replicas:
                replica.forwards.clear()
            assert _is_whole(await scheduler.submit(work_of(64), NOW), 64)
            assert [f.rows for r in replicas for f in r.forwards] == [16] * 4
            assert _is_whole(await scheduler.submit(work_of(4), NOW), 4)
            assert sorted(len(r.forwards) for r in replicas) == [1, 1, 1, 2]

    run_virtually(scenario())


# What can be seen.


def test_what_ran_is_reported() -> None:
    async def scenario() -> None:
        reports: list[MicrobatchReport] = []
        loop = asyncio.get_running_loop()
        config = SchedulerConfig(evaluation_budget=BUDGET)
        scheduler = Scheduler([TimedReplica(TIMING)], config, loop.time, reports.append)
        scheduler.start()
        await asyncio.gather(*(scheduler.submit(work_of(n), NOW) for n in (2, 3, 11)))
        await _learn(scheduler)
        snapshot = scheduler.snapshot()
        await scheduler.stop()
        assert [(r.requests, r.evaluations) for r in reports[:2]] == [(3, 8), (1, 8)]
        assert reports[0].fill == 1.0 and reports[0].seconds == pytest.approx(FULL)
        assert snapshot.microbatches == len(reports) and snapshot.answered == 3 + 16
        assert snapshot.evaluations == sum(r.evaluations for r in reports) == 16 + 60
        assert snapshot.mean_fill == pytest.approx(76 / 8 / len(reports))
        (replica,) = snapshot.replicas
        assert replica.launch_seconds == pytest.approx(LAUNCH, rel=0.02)
        assert replica.row_seconds == pytest.approx(ROW, rel=0.02)

    run_virtually(scenario())


class _RaisesAt(TimedReplica):
    """Where a request of that seed is in the microbatch."""

    seed = 13

    async def run(self, works: Sequence[Work], wanted: Wanted) -> MicrobatchResult:
        if any(work.seed == self.seed for work in works):
            raise MemoryError("out of device memory")
        return await super().run(works, wanted)


def test_what_ran_one_by_one_is_reported_too() -> None:
    """After a forward that raised. Broken by results that are delivered and not counted."""

    async def scenario() -> None:
        reports: list[MicrobatchReport] = []
        loop = asyncio.get_running_loop()
        config = SchedulerConfig(evaluation_budget=BUDGET)
        scheduler = Scheduler([_RaisesAt(TIMING)], config, loop.time, reports.append)
        scheduler.start()
        sizes = {1: 2, _RaisesAt.seed: 3, 2: 1}
        tasks = {
            seed: _start(scheduler.submit(work_of(rows, seed=seed), NOW))
            for seed, rows in sizes.items()
        }
        assert await _reason(tasks.pop(_RaisesAt.seed)) == Reason.REPLICA_FAILED
        for seed, task in tasks.items():
            assert _is_whole(await task, sizes[seed])
        await asyncio.sleep(0.0)  # the last report is on its way
        snapshot = scheduler.snapshot()
        await scheduler.stop()
        assert [(r.requests, r.evaluations, r.fill, r.seconds) for r in reports] == [
            (1, rows, rows / BUDGET, pytest.approx(TIMING.seconds(rows))) for rows in (2, 1)
        ]
        assert [len(r.waits) for r in reports] == [1, 1]
        assert (snapshot.microbatches, snapshot.evaluations) == (2, 3)
        (replica,) = snapshot.replicas
        assert replica.row_seconds == 0.0, "the cost of microbatches is not learned from these"

    run_virtually(scenario())


def test_priority_reaches_the_device_in_its_order() -> None:
    async def scenario() -> None:
        replica = TimedReplica(TIMING)
        async with _scheduler(replica) as scheduler:
            tasks = [_start(scheduler.submit(work_of(8, seed=0), NOW))]
            await asyncio.sleep(0.001)
            for seed, priority in ((1, 0), (2, -3), (3, 7), (4, 1)):
                terms = Terms(priority=priority)
                tasks.append(_start(scheduler.submit(work_of(8, seed=seed), terms)))
            await asyncio.gather(*tasks)
        order = [forward.works[0][0] for forward in replica.forwards]
        assert order == [0, 3, 4, 1, 2]

    run_virtually(scenario())


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluation_budget": 0},
        {"max_waiting_requests": 0},
        {"max_waiting_evaluations": -1},
        {"tenant_weights": {"a": 0.0}},
        {"tenant_weights": {"a": float("inf")}},
        {"hold_fraction": 1.5},
        {"hold_fraction": -0.1},
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings)).replace("tenant_weights", "tenant")):
        SchedulerConfig(**settings)
