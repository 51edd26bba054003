"""The decision how many replicas there should be, on loads over time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from carv_server.replicas.autoscale import Load, ScalePolicy, ScaleState, decide

POLICY = ScalePolicy(min_replicas=1, max_replicas=4)


def _targets(
    load: Callable[[float, int], Load],
    *,
    seconds: int,
    start: int = 1,
    policy: ScalePolicy = POLICY,
) -> list[int]:
    """Targets at each second, for a load by time and by the replicas that are warm."""
    state, targets = ScaleState(start), []
    for now in range(seconds):
        state = decide(policy, state, load(float(now), state.target), float(now))
        targets.append(state.target)
    return targets


def test_a_queue_that_stays_long_adds_replicas_at_once_for_what_it_holds() -> None:
    """9 s of work at 2 s a replica: five, and four are the most."""
    targets = _targets(lambda now, warm: Load(9.0, warm, warm), seconds=10)
    assert targets == [1, 1, 1] + [4] * 7


def test_a_short_burst_adds_none() -> None:
    burst = [9.0, 9.0, 9.0, 0.0] * 5
    targets = _targets(lambda now, warm: Load(burst[int(now)], warm, warm), seconds=20)
    assert set(targets) == {1}


def test_work_is_counted_per_replica() -> None:
    """3.9 s of work waiting is long for one replica, and not for two."""
    assert 2 in _targets(lambda now, warm: Load(3.9, warm, warm), seconds=30)
    assert 3 not in _targets(lambda now, warm: Load(3.9, warm, warm), seconds=300)


def test_nothing_is_added_while_replicas_are_starting() -> None:
    def load(now: float, target: int) -> Load:
        return Load(5.0, 1.0, 1 if now < 100 else target)

    targets = _targets(load, seconds=130)
    assert targets[99] == 3
    assert set(targets[3:100]) == {3}, "what the two that load will do is not known yet"


def test_idle_replicas_leave_one_by_one_down_to_the_least() -> None:
    targets = _targets(lambda now, warm: Load(0.0, 0.0, warm), seconds=300, start=4)
    changes = [i for i in range(1, 300) if targets[i] != targets[i - 1]]
    assert targets[0] == 4 and targets[-1] == 1
    assert len(changes) == 3, "one at a time"
    assert all(b - a > POLICY.down_after_seconds for a, b in pairwise(changes))


@pytest.mark.parametrize(("busy", "least"), [(1.9, 4), (1.7, 3), (0.7, 2), (0.5, 1)])
def test_replicas_stay_while_fewer_would_be_too_busy(busy: float, least: int) -> None:
    """Of n replicas n - 1 must do at 60 % of their time: 1.9 > 0.6 * 3, 1.7 <= 1.8."""
    targets = _targets(lambda now, warm: Load(0.0, busy, warm), seconds=1000, start=4)
    assert targets[-1] == least


def test_a_steady_load_does_not_make_it_swing() -> None:
    """A load of 1.1 replicas: what queues up under one asks for three, two of which are enough;
    then nothing moves."""

    def load(now: float, warm: int) -> Load:
        return Load(0.0 if warm >= 2 else now, min(1.1, warm), warm)

    targets = _targets(load, seconds=1000)
    assert [b for a, b in pairwise(targets) if a != b] == [3, 2]


def test_a_change_is_followed_by_a_rest() -> None:
    targets = _targets(lambda now, warm: Load(2.1 * warm, warm, warm), seconds=60)
    changes = [i for i in range(1, 60) if targets[i] != targets[i - 1]]
    assert len(changes) == 3
    assert all(b - a >= POLICY.cool_down_seconds for a, b in pairwise(changes))


@pytest.mark.parametrize(("least", "most"), [(0, 1), (3, 2)])
def test_bounds_that_make_no_sense_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"{least} to {most} replicas"):
        ScalePolicy(min_replicas=least, max_replicas=most)
