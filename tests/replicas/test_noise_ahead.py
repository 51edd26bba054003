"""Noise made ahead is the noise that would have been made, and is used once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from carv_server.replicas import noise_ahead
from carv_server.replicas.forward import Forward, evaluate
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.noise_ahead import NoiseAhead
from carv_server.replicas.protocol import Conditioning, Work, WorkResult
from carv_server.sampling.seeds import Seeds
from carv_server.teachers.protocol import Unconditional
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.replicas.works import make

SHAPE = (4, 8, 8)


def fresh() -> Seeds:
    return Seeds(count((1 << 63) + 5).__next__)


def simulated(seconds: float = 0.0) -> SimulatedTeacher:
    return SimulatedTeacher(SHAPE, DeviceTiming(seconds, 0.0))


def work(teacher: SimulatedTeacher, seed: int, draws: int = 8, *, noisy: bool = False) -> Work:
    (row,) = teacher.encode(Unconditional())
    made = make(teacher, [Conditioning("none", row)], 3, renders=2, draws=draws, paired=True)
    return replace(made, seed=seed, latents_are_noisy=noisy)


def assert_same(found: WorkResult | None, expected: WorkResult) -> None:
    assert found is not None and found.reduction is not None and expected.reduction is not None
    for name, moments in expected.reduction.moments.items():
        torch.testing.assert_close(
            found.reduction.moments[name].mean, moments.mean, rtol=0.0, atol=0.0
        )
    np.testing.assert_array_equal(found.residuals, expected.residuals)


def test_seeds_ahead_are_the_ones_that_are_taken() -> None:
    seeds = fresh()
    ahead = seeds.ahead(3)
    assert seeds.ahead(2) == ahead[:2] and not seeds.came_from_here(ahead[0])
    taken = [seeds.take() for _ in range(2000)]
    assert taken[:3] == ahead and len(set(taken)) == 2000
    assert seeds.came_from_here(taken[-1]) and not seeds.came_from_here(taken[0])


def test_the_next_request_finds_its_noise_and_the_same_sums() -> None:
    teacher, seeds = simulated(), fresh()
    ahead = NoiseAhead(seeds, SHAPE)
    first, other = (work(teacher, seeds.take(), draws) for draws in (8, 4))
    ahead.make([first, other])
    upcoming = [work(teacher, seeds.take(), draws) for draws in (8, 4)]
    assert_same(
        Forward(teacher, ahead=ahead).evaluate(upcoming[:1])[0], evaluate(teacher, upcoming[:1])[0]
    )
    assert ahead.take(upcoming[:1]) is None, "it is the caller's to overwrite, and so used up"
    assert ahead.take(upcoming) is None, "some of it is not there"
    assert ahead.take(upcoming[1:]) is not None


def test_it_is_used_for_no_other_draws_than_it_was_made_for() -> None:
    teacher, seeds = simulated(), fresh()
    ahead = NoiseAhead(seeds, SHAPE)
    ahead.make([work(teacher, seeds.take())])
    longer = work(teacher, seeds.take(), draws=10)
    assert ahead.take([longer]) is None
    halves = [replace(longer, noise_indices=longer.noise_indices + (s << 20)) for s in (0, 1)]
    assert ahead.take(halves) is None


@pytest.mark.parametrize("why", ["own seed", "noisy", "later part", "halves", "large"])
def test_nothing_is_made_where_no_such_request_is_expected(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, seeds = simulated(), fresh()
    ahead = NoiseAhead(seeds, SHAPE)
    given = [work(teacher, 4 if why == "own seed" else seeds.take(), noisy=why == "noisy")]
    if why == "later part":
        given = [replace(each, noise_indices=each.noise_indices + 4) for each in given]
    if why == "halves":
        given = [*given, replace(given[0], noise_indices=given[0].noise_indices + (1 << 20))]
    if why == "large":
        monkeypatch.setattr(noise_ahead, "_LARGEST_BYTES", 7 * 4 * 256)
    made: list[object] = []
    monkeypatch.setattr(noise_ahead, "draw_noise", lambda *given: made.append(given))
    ahead.make(given)
    assert not made


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that go to other teachers leave their noise behind."""
    teacher, seeds = simulated(), fresh()
    monkeypatch.setattr(noise_ahead, "_MOST_BYTES", 3 * 8 * 4 * 256)
    ahead = NoiseAhead(seeds, SHAPE)
    like = work(teacher, seeds.take())
    lost: list[int] = []
    for _ in range(5):
        ahead.make([replace(like, seed=seeds.take())])
        lost.append(seeds.take())
    kept = [ahead.take([work(teacher, seed)]) is not None for seed in lost]
    assert kept == [False, False, True, True, True]


def test_a_replica_makes_it_beside_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, seeds = simulated(0.05), fresh()
    drawn: list[int] = []
    draw = noise_ahead.draw_noise

    def watched(*given: object) -> torch.Tensor:
        drawn.append(1)
        return draw(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(noise_ahead, "draw_noise", watched)
    monkeypatch.setattr("carv_server.replicas.forward.draw_noise", watched)

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(2) as staging:
            replica = InProcessReplica(teacher, device, 64, staging, seeds)
            for asked in range(4):
                before = len(drawn)
                given = work(teacher, seeds.take())
                found = await replica.run([given], lambda _: True)
                # The first teaches what a forward takes, the second finds nothing yet.
                assert len(drawn) - before == (1, 2, 1, 1)[asked]
                drawn_since = len(drawn)
                assert_same(found.results[0], evaluate(teacher, [given])[0])
                assert len(drawn) == drawn_since + 1

    asyncio.run(scenario())
