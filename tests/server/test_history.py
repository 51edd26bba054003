"""The adaptive proposal's memory: a request never sees its own draws, repeats see what the first
saw, and nothing is shared that should not be."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from carv_client import TeacherClient
from carv_server.history import DrawHistories, HistoryConfig, HistoryKey, history_key
from carv_server.sampling.objective import ObjectiveTables, prior_on_range
from carv_server.sampling.past import empty_statistics as empty
from carv_server.sampling.past import past_on_grid, record_batches, record_draws
from carv_server.sampling.plan import ESTIMATE_STREAMS, PROFILE_STREAMS, REFINE_STREAMS
from tests.server.wire import latents
from tests.support.oracle import oracle_schedule

SCHEDULE = oracle_schedule()
KEY = HistoryKey("", b"residual", "")
TABLE = ("timesteps", "noise_indices", "signs", "importance_weights")


def residuals(norm: float, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draws over the whole grid whose ||h|| is ``norm`` in the first half of it and 1 beyond."""
    timesteps = np.linspace(0, len(SCHEDULE) - 1, count).astype(np.int64)
    squared = np.where(timesteps < len(SCHEDULE) // 2, norm**2, 1.0)
    return timesteps, np.stack([squared, 0.25 * np.ones(count), np.ones(count)], axis=1)


def histories(**bounds: float) -> DrawHistories:
    return DrawHistories(SCHEDULE, HistoryConfig(**bounds))  # pyright: ignore[reportArgumentType]


def test_moments_come_back_and_the_slope_with_them() -> None:
    past = past_on_grid(record_draws(empty(), SCHEDULE, *residuals(3.0, 4096), 1e9), SCHEDULE)
    assert past is not None and past.draws == 4096
    quarter = len(SCHEDULE) // 4
    # Away from the step, which smoothing spreads over a bin or two, and beyond rounding.
    np.testing.assert_allclose(past.root_second_moment[quarter // 2], 3.0, rtol=0.02)
    np.testing.assert_allclose(past.root_second_moment[-quarter], 1.0, rtol=0.05)
    np.testing.assert_allclose(past.noise_slope, 0.25, rtol=1e-12)
    controlled = np.sqrt(past.root_second_moment**2 - 0.25**2)
    np.testing.assert_allclose(past.root_controlled_moment, controlled, rtol=0.02)


def test_a_stretch_without_draws_is_taken_for_flat() -> None:
    timesteps = np.full(500, len(SCHEDULE) - 1)
    given = np.tile([4.0, 0.0, 1.0], (500, 1))
    past = past_on_grid(record_draws(empty(), SCHEDULE, timesteps, given, 1e9), SCHEDULE)
    assert past is not None
    np.testing.assert_allclose(past.root_second_moment, 2.0, rtol=1e-12)


def test_old_draws_fade() -> None:
    statistics = record_draws(empty(), SCHEDULE, *residuals(9.0), 64.0)
    for _ in range(20):
        statistics = record_draws(statistics, SCHEDULE, *residuals(1.0), 64.0)
    past = past_on_grid(statistics, SCHEDULE)
    assert past is not None and past.draws < 64 / (1 - np.exp(-1)) + 1e-9
    np.testing.assert_allclose(past.root_second_moment, 1.0, rtol=1e-6)


def test_batches_recorded_together_count_as_one_after_the_other() -> None:
    batches = [residuals(norm, count) for norm, count in [(9.0, 40), (1.0, 3), (4.0, 64)]]
    one_by_one = empty()
    for batch in batches:
        one_by_one = record_draws(one_by_one, SCHEDULE, *batch, 64.0)
    together = record_batches(empty(), SCHEDULE, batches, 64.0)
    np.testing.assert_allclose(together.sums, one_by_one.sums, rtol=1e-12)


def test_draws_count_once_they_are_a_32nd_of_what_is_known_and_look_shows_all() -> None:
    table = histories(memory_draws=1e9)
    table.recall(KEY, 0)
    table.record(KEY, 0, *residuals(3.0, 3200))
    planned = table.recall(KEY, 1)
    assert planned is not None and planned.draws == pytest.approx(3200)
    table.record(KEY, 1, *residuals(3.0, 99))
    assert table.recall(KEY, 2) is planned
    table.record(KEY, 2, *residuals(3.0, 1))
    after = table.recall(KEY, 3)
    assert after is not None and after.draws == pytest.approx(3300)
    table.record(KEY, 3, *residuals(3.0, 2))
    seen = table.look(KEY)
    assert seen is not None and seen.draws == pytest.approx(3302)


def test_what_is_kept_of_a_request_keeps_no_microbatch() -> None:
    """Its residuals come as rows of those of its whole microbatch."""
    table = histories(memory_draws=1e9)
    table.recall(KEY, 0)
    table.record(KEY, 0, *residuals(3.0, 3200))
    timesteps, microbatch = residuals(3.0, 4096)
    gone = weakref.ref(microbatch)
    table.recall(KEY, 1)
    table.record(KEY, 1, timesteps[:2], microbatch[:2])
    del microbatch
    assert gone() is None
    seen = table.look(KEY)
    assert seen is not None and seen.draws == pytest.approx(3202)


def test_a_request_is_planned_on_the_past_before_it() -> None:
    table = histories()
    assert table.recall(KEY, seed=1) is None
    table.record(KEY, 1, *residuals(3.0))
    assert table.recall(KEY, seed=1) is None, "the first request of the seed saw nothing"
    second = table.recall(KEY, seed=2)
    assert second is not None
    table.record(KEY, 2, *residuals(30.0))
    again, fresh = table.recall(KEY, seed=2), table.recall(KEY, seed=3)
    assert again is not None and fresh is not None
    np.testing.assert_array_equal(again.root_second_moment, second.root_second_moment)
    assert fresh.root_second_moment[0] > 2 * second.root_second_moment[0]


def test_tenants_objectives_and_labels_learn_apart_but_not_weighting_and_prior() -> None:
    n = len(SCHEDULE)

    def objective(scale: float, high: float, weight: float) -> ObjectiveTables:
        return ObjectiveTables(
            prior_on_range(n, 0.02, high), np.full(n, weight), np.full((1, n), scale), -np.ones(n)
        )

    key = history_key(objective(7.5, 0.98, 1.0), [False], "run")
    assert key == history_key(objective(7.5, 0.5, 2.0), [False], "run")
    others = {
        history_key(objective(7.5, 0.98, 1.0), [False], "other"),
        history_key(objective(7.5, 0.98, 1.0), [True], "run"),
        history_key(objective(3.0, 0.98, 1.0), [False], "run"),
        history_key(objective(7.5, 0.98, 1.0), [False], "run", tenant="b"),
    }
    assert len(others | {key}) == 5


def test_memory_is_bounded() -> None:
    table = histories(max_histories=3, remembered_seeds=4)
    for label in "abcdef":
        for seed in range(10):
            table.recall(HistoryKey("", b"", label), seed)
    assert len(table) == 3
    assert all(len(entry.seeds) == 4 for entry in table._entries.values())


def test_a_seed_that_is_used_is_not_forgotten_and_a_forgotten_one_is_not_recorded() -> None:
    table = histories(remembered_seeds=4)
    assert table.recall(KEY, 0) is None
    for seed in range(1, 20):
        table.recall(KEY, seed)
        table.record(KEY, seed, *residuals(3.0))
        assert table.recall(KEY, 0) is None, "every second request has seed 0"
    before = table.look(KEY)
    table.record(KEY, 1, *residuals(30.0))
    table.record(HistoryKey("", b"never recalled", ""), 1, *residuals(30.0))
    after = table.look(KEY)
    assert before is not None and after is not None and after.draws == before.draws


def test_streams_that_a_history_may_mix_share_no_draw() -> None:
    """Noise indices of stream s start at s 2^20; those of a profile, which is recorded before
    anything else of its seed is planned, are apart from all others."""
    assert set(PROFILE_STREAMS).isdisjoint(REFINE_STREAMS)
    assert set(ESTIMATE_STREAMS) <= set(REFINE_STREAMS)
    assert PROFILE_STREAMS.stop << 20 <= 2**32


@pytest.mark.parametrize("draws", [2, 4])
def test_halves_too_small_for_a_variance_of_their_own_have_that_of_their_difference(
    client: TeacherClient, draws: int
) -> None:
    found = client.estimate_gradient(
        latents(2, 5), client.create_conditioning(class_id=1), draws=draws, seed=3,
        return_half_estimates=True,
    )  # fmt: skip
    assert found.half_estimates is not None and found.noise_variance is not None
    one, other = found.half_estimates.astype(np.float64)
    expected = ((one - other).reshape(2, -1) ** 2).sum(axis=1) / 4
    assert found.variance_estimator == "unbiased"
    np.testing.assert_allclose(found.noise_variance, expected, rtol=1e-5)


def test_through_the_server_a_request_never_sees_its_own_draws(client: TeacherClient) -> None:
    """The proposal of a request depends on nothing that comes with or after it: asked again with
    its seed, whatever was recorded meanwhile, it has the same draws; and a first request is
    planned as though there had been no draws at all."""
    conditioning = client.create_conditioning(class_id=1)

    def estimate(seed: int, history: str = "own draws", renders: int = 2):
        return client.estimate_gradient(
            latents(renders, seed), conditioning, draws=8, seed=seed, history=history,
            return_draws=True,
        )  # fmt: skip

    first = estimate(1)
    assert (first.proposal, first.past_draws) == ("prior", 0.0)
    second = estimate(2)
    assert second.proposal == "adaptive" and second.past_draws == 16
    for seed in range(3, 9):
        estimate(seed)
    for before in (first, second):
        again = estimate(before.seed)
        assert again.draws is not None and before.draws is not None
        for name in TABLE:
            np.testing.assert_array_equal(getattr(again.draws, name), getattr(before.draws, name))
    other = estimate(2, history="another")
    assert (other.proposal, other.past_draws) == ("prior", 0.0)


@pytest.mark.parametrize("halves", [False, True])
def test_norms_and_half_estimates_are_those_of_the_draws(
    client: TeacherClient, halves: bool
) -> None:
    """The gradient rebuilt from explicit draws, and each half from its own."""
    conditioning, x = client.create_conditioning(class_id=1), latents(3, 5)
    found = client.estimate_gradient(
        x, conditioning, draws=8, seed=77, history="halves", return_draws=True,
        return_half_estimates=halves,
    )  # fmt: skip
    assert found.draws is not None
    table = {name: getattr(found.draws, name) for name in TABLE}
    replayed = client.estimate_gradient(x, conditioning, seed=77, return_draws=True, **table)
    np.testing.assert_allclose(replayed.gradient, found.gradient, rtol=1e-4, atol=1e-6)
    assert replayed.draws is not None
    assert replayed.draws.norms is not None and found.draws.norms is not None
    np.testing.assert_allclose(replayed.draws.norms, found.draws.norms, rtol=1e-5)
    assert (found.half_estimates is not None) == halves
    if found.half_estimates is not None:
        for half, columns in zip(found.half_estimates, (slice(0, 4), slice(4, 8)), strict=True):
            own = {name: value[:, columns] for name, value in table.items()}
            alone = client.estimate_gradient(x, conditioning, seed=77, **own)
            np.testing.assert_allclose(half, alone.gradient, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.half_estimates.mean(0), found.gradient, rtol=1e-6)
        assert (
            np.unique(table["noise_indices"][:, :4]).tolist()
            != np.unique(table["noise_indices"][:, 4:]).tolist()
        )
    single = client.estimate_gradient(
        x[:1], conditioning, seed=77, **{name: value[:1, :1] for name, value in table.items()}
    )
    norm = np.linalg.norm(single.gradient) / table["importance_weights"][0, 0]
    np.testing.assert_allclose(found.draws.norms[0, 0], norm, rtol=1e-4)
