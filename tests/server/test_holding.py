"""What a microbatch costs, who is about to ask again, and when waiting for them pays."""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.scheduling.cost import CostModel
from carv_server.scheduling.hold import Expected, hold_seconds
from carv_server.scheduling.returns import ReturnForecast

LAUNCH, ROW, BUDGET = 0.006, 0.001, 8
MOST = 0.75 * LAUNCH


def _hold(waiting: int, *seconds: float, launch: float = LAUNCH, most: float = MOST) -> float:
    expected = [Expected(s, 1) for s in seconds]
    return hold_seconds(waiting, BUDGET, launch, ROW, expected, most)


def _cost(rows: list[int], seconds: list[float]) -> CostModel:
    cost = CostModel()
    for n, s in zip(rows, seconds, strict=True):
        cost.observe(n, s)
    return cost


# The cost of a microbatch.


def test_launch_and_row_are_found_from_noisy_microbatches() -> None:
    """200 with 5 % noise of forgetting 0.97: the line is known to about 0.05 * 10 ms / 33^0.5 over
    its middle, 2 % of it; five of those."""
    rng = np.random.default_rng(1)
    rows = rng.integers(1, 9, 200).tolist()
    noise = 1.0 + 0.05 * rng.standard_normal(200)
    cost = _cost(rows, [(LAUNCH + n * ROW) * e for n, e in zip(rows, noise, strict=True)])
    assert cost.known
    assert cost.launch_seconds == pytest.approx(LAUNCH, abs=0.001)
    for n in (1, 4, 8):
        assert cost.seconds(n) == pytest.approx(LAUNCH + n * ROW, abs=0.001)


def test_a_device_that_slows_down_is_followed() -> None:
    rows = [1, 8, 4, 2] * 60
    cost = _cost(rows, [(LAUNCH + n * ROW) * (1 if i < 80 else 2) for i, n in enumerate(rows)])
    assert cost.launch_seconds == pytest.approx(2 * LAUNCH, rel=0.05)
    assert cost.row_seconds == pytest.approx(2 * ROW, rel=0.05)


def test_one_size_alone_leaves_the_line_through_it_and_the_slope_known_before() -> None:
    cost = _cost([1, 8] * 20, [LAUNCH + n * ROW for n in [1, 8] * 20])
    for _ in range(500):
        cost.observe(4, LAUNCH + 4 * ROW)
    assert cost.row_seconds == pytest.approx(ROW, rel=0.05)
    assert cost.launch_seconds == pytest.approx(LAUNCH, rel=0.05)


def test_a_slow_first_microbatch_and_a_stall_do_not_count_for_much() -> None:
    rows = [1, 8, 4] * 10
    seconds = [LAUNCH + n * ROW for n in rows]
    seconds[0], seconds[25] = 30.0, 10.0
    cost = _cost(rows, seconds)
    assert cost.seconds(4) == pytest.approx(0.010, rel=0.2)


def test_no_launch_is_no_launch() -> None:
    rows = [1, 8, 4, 2] * 20
    assert _cost(rows, [n * ROW for n in rows]).launch_seconds == pytest.approx(0.0, abs=1e-4)


# Whether to hold.


def test_a_lone_request_starts_at_once() -> None:
    assert _hold(1) == 0.0


def test_four_callers_go_together() -> None:
    """Two and two: 4 rows in 16 ms. Together after 1 ms: 4 in 11."""
    assert _hold(2, 0.0005, 0.001) == 0.001
    assert _hold(1, 0.0004, 0.0008, 0.001) == 0.001
    assert _hold(3, 0.001) == 0.001


def test_a_straggler_is_not_waited_for() -> None:
    assert _hold(2, 0.0005, 0.001, 0.02) == 0.001
    assert _hold(1, 0.02) == 0.0


def test_never_beyond_the_bound_nor_for_a_launch_that_costs_nothing() -> None:
    assert _hold(1, 0.002, most=0.0019) == 0.0
    assert _hold(1, 0.0001, launch=0.0, most=0.0) == 0.0
    assert hold_seconds(1, BUDGET, 0.0, 0.0, [Expected(0.1, 1)], 0.0) == 0.0


def test_a_full_microbatch_does_not_wait_nor_one_that_saves_no_launch() -> None:
    assert _hold(8, 0.0001) == 0.0
    # Twelve callers, eight about to return: two launches for twelve rows either way.
    assert _hold(4, *[0.0015] * 8) == 0.0


def test_what_is_held_for_is_worth_it_in_every_random_case() -> None:
    """The rate of the microbatch that is held is above that of one launch now and one for those
    who come meanwhile."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(500):
        waiting = int(rng.integers(1, BUDGET))
        seconds = rng.uniform(0, 0.01, rng.integers(0, 12)).tolist()
        hold = _hold(waiting, *seconds)
        assert 0.0 <= hold <= MOST
        if hold > 0.0:
            held += 1
            rows = min(BUDGET, waiting + sum(s <= hold for s in seconds))
            later = min(BUDGET, sum(s <= LAUNCH + waiting * ROW for s in seconds))
            apart = (waiting + later) / (2 * LAUNCH + (waiting + later) * ROW)
            assert rows / (hold + LAUNCH + rows * ROW) > apart
    assert 100 < held < 400


# Who returns.


def _loop(forecast: ReturnForecast, caller: str, gaps: list[float], start: float = 0.0) -> float:
    """Answers, each followed by a request after a gap; the time of the last answer, unfollowed."""
    now = start
    for gap in gaps:
        forecast.answered(caller, now)
        now += gap
        forecast.arrived(caller, 3, now)
        now += 0.02
    forecast.answered(caller, now)
    return now


def test_a_caller_that_returns_is_expected_when_it_uses_to() -> None:
    forecast = ReturnForecast()
    now = _loop(forecast, "a", [0.002] * 20)
    (found,) = forecast.expected(now, MOST)
    assert found.seconds == pytest.approx(0.002, rel=0.05)
    assert found.evaluations == 3
    assert forecast.after_answers(["a", "stranger"], MOST)[0].seconds == pytest.approx(
        0.002, rel=0.05
    )
    (later,) = forecast.expected(now + 0.0005, MOST)
    assert later.seconds == pytest.approx(0.0015, rel=0.1)
    for waited in (0.0018, 0.003):
        (soon,) = forecast.expected(now + waited, MOST)
        assert soon.seconds == 0.001, "any moment: no timer is finer"
    assert forecast.expected(now + 0.01, MOST) == [], "it is late: given up"


def test_nobody_is_expected_of_whom_little_is_known() -> None:
    forecast = ReturnForecast()
    assert forecast.expected(_loop(forecast, "a", [0.002] * 2), MOST) == []


def test_a_caller_that_has_left_is_soon_forgotten() -> None:
    forecast = ReturnForecast()
    now = _loop(forecast, "a", [0.002] * 20)
    for _ in range(3):
        now += 1.0
        forecast.expected(now, MOST)
        forecast.answered("a", now)
    assert forecast.expected(now, MOST) == []


def test_returns_that_scatter_are_not_waited_for() -> None:
    forecast = ReturnForecast()
    gaps = np.random.default_rng(3).exponential(0.01, 50)
    now = _loop(forecast, "a", np.minimum(gaps, 0.09).tolist())
    assert forecast.expected(now, 0.001) == []


def test_several_in_flight_of_one_caller_are_told_apart() -> None:
    forecast = ReturnForecast()
    now = _loop(forecast, "a", [0.002] * 20)
    forecast.answered("a", now)
    forecast.answered("a", now)
    assert len(forecast.expected(now, MOST)) == 3
    forecast.arrived("a", 3, now + 0.002)
    assert len(forecast.expected(now + 0.002, MOST)) == 2


def test_memory_of_callers_is_bounded() -> None:
    forecast = ReturnForecast()
    for i in range(5000):
        forecast.answered(str(i), 0.001 * i)
    assert len(forecast._callers) <= 1024 and len(forecast._open) <= 1024
