"""Noise made ahead is the noise that would have been made, and is used once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from carv_server.replicas import forward, noise_ahead
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
    seed = seeds.take()
    assert ahead.take([work(teacher, seed, draws=10)]) is None
    assert ahead.take([work(teacher, seed)] * 2) is None, "one noise, and two who overwrite it"
    assert ahead.take([work(teacher, seed)]) is not None


def test_what_was_made_for_others_gives_way() -> None:
    teacher, seeds = simulated(), fresh()
    ahead = NoiseAhead(seeds, SHAPE)
    short, long = (work(teacher, seeds.take(), draws) for draws in (4, 8))
    ahead.make([short])
    ahead.make([long])
    assert ahead.take([work(teacher, seeds.take(), draws=8)]) is not None


def test_two_who_make_the_same_count_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken by bytes that are added without those that they replace taken off."""
    teacher, seeds = simulated(), fresh()
    monkeypatch.setattr(noise_ahead, "_MOST_BYTES", 2 * 16 * (4 * 256 + 16))
    both, draw = threading.Barrier(2), noise_ahead.draw_noise

    def together(*given: object) -> torch.Tensor:
        both.wait(10)
        return draw(*given)  # pyright: ignore[reportArgumentType]

    ahead = NoiseAhead(seeds, SHAPE)
    for _ in range(4):
        like = [work(teacher, seeds.take())]
        monkeypatch.setattr(noise_ahead, "draw_noise", together)
        with ThreadPoolExecutor(2) as makers:
            for _ in range(2):
                makers.submit(ahead.make, like)
        monkeypatch.setattr(noise_ahead, "draw_noise", draw)
        assert ahead.take([work(teacher, seeds.ahead(1)[0])]) is not None


def test_one_microbatch_makes_no_more_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would throw out what is needed first."""
    teacher, seeds = simulated(), fresh()
    monkeypatch.setattr(noise_ahead, "_MOST_BYTES", 8 * 16 * (4 * 256 + 16))
    ahead = NoiseAhead(seeds, SHAPE)
    ahead.make([work(teacher, seeds.take()) for _ in range(20)])
    found = [ahead.take([work(teacher, seeds.take())]) is not None for _ in range(20)]
    assert found == [True] * 4 + [False] * 16


def test_what_goes_wrong_is_logged_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, seeds = simulated(), fresh()
    ahead = NoiseAhead(seeds, SHAPE)

    def fail(*given: object) -> torch.Tensor:
        raise MemoryError("no room")

    monkeypatch.setattr(noise_ahead, "draw_noise", fail)
    ahead.make([work(teacher, seeds.take())])
    assert "could not be made ahead" in caplog.text and "no room" in caplog.text


@pytest.mark.parametrize(
    "why", ["own seed", "noisy", "later part", "halves", "large", "another block"]
)
def test_nothing_is_made_where_no_such_request_is_expected(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, seeds = simulated(), fresh()
    ahead = NoiseAhead(seeds, SHAPE)
    given = [work(teacher, 4 if why == "own seed" else seeds.take(), noisy=why == "noisy")]
    if why == "later part":
        given = [replace(each, noise_indices=each.noise_indices + 4) for each in given]
    if why == "another block":
        given = [replace(each, noise_indices=each.noise_indices + (1 << 20)) for each in given]
    if why == "halves":
        given = [*given, replace(given[0], noise_indices=given[0].noise_indices + (1 << 20))]
    if why == "large":
        monkeypatch.setattr(noise_ahead, "_LARGEST_BYTES", 16 * 4 * 256)
    made: list[object] = []
    monkeypatch.setattr(noise_ahead, "draw_noise", lambda *given: made.append(given))
    ahead.make(given)
    assert not made


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that go to other teachers leave their noise behind."""
    teacher, seeds = simulated(), fresh()
    monkeypatch.setattr(noise_ahead, "_MOST_BYTES", 4 * (8 * 4 * 256 + 16 * 16))
    ahead = NoiseAhead(seeds, SHAPE)
    like = work(teacher, seeds.take())
    lost: list[int] = []
    for _ in range(5):
        ahead.make([replace(like, seed=seeds.take())])
        lost.append(seeds.take())
    kept = [ahead.take([work(teacher, seed)]) is not None for seed in lost]
    assert kept == [False, True, True, True, True]


def test_a_replica_makes_it_beside_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, seeds = simulated(0.02), fresh()
    drawn: list[object] = []
    draw = forward.draw_noise

    def watched(*given: object) -> torch.Tensor:
        drawn.append(None)
        return draw(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(forward, "draw_noise", watched)

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(1) as staging:
            replica = InProcessReplica(teacher, device, 64, staging, seeds)
            # The first teaches what a forward takes, the second finds nothing yet.
            for expected in (1, 1, 0, 0):
                given = work(teacher, seeds.take())
                drawn.clear()
                found = await replica.run([given], lambda _: True)
                assert len(drawn) == expected
                assert_same(found.results[0], evaluate(teacher, [given])[0])
                staging.submit(lambda: None).result()  # behind what is being made

    asyncio.run(scenario())
