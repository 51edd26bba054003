"""Laws of the shares of a microbatch, over random queues."""

from __future__ import annotations

import random

from carv_server.packing import fair_shares

Costs = list[list[int]]


def _queues() -> list[tuple[Costs, int]]:
    rng = random.Random(20260521)
    queues: list[tuple[Costs, int]] = []
    for _ in range(500):
        largest = rng.choice([1, 2, 8, 40])
        costs = [
            [rng.randint(1, largest) for _ in range(rng.randint(0, 30))]
            for _ in range(rng.randint(1, 40))
        ]
        queues.append((costs, rng.choice([1, 7, 64, 300])))
    return queues


def _spent(groups: list[int], share: int) -> int:
    return sum(groups[:share])


def test_no_request_gets_more_than_it_waits_for() -> None:
    for costs, budget in _queues():
        shares = fair_shares(costs, budget)
        assert len(shares) == len(costs)
        assert all(0 <= s <= len(c) for s, c in zip(shares, costs, strict=True))


def test_the_budget_holds_but_for_a_lone_first_group() -> None:
    for costs, budget in _queues():
        shares = fair_shares(costs, budget)
        total = sum(map(_spent, costs, shares))
        if total > budget:
            assert sum(shares) == 1
            first = next(groups for groups in costs if groups)
            assert total == first[0]


def test_nothing_is_left_that_a_waiting_group_fits_into() -> None:
    for costs, budget in _queues():
        shares = fair_shares(costs, budget)
        left = budget - sum(map(_spent, costs, shares))
        waiting = [c[s] for c, s in zip(costs, shares, strict=True) if s < len(c)]
        assert all(cost > left for cost in waiting)


def test_shares_are_max_min_fair() -> None:
    """Whoever still waits could not have had more but from someone who has less: before its
    last group no one had more than a waiting request has now, unless the waiting request's
    next group is the larger."""
    for costs, budget in _queues():
        shares = fair_shares(costs, budget)
        spent = list(map(_spent, costs, shares))
        for i, waiting in enumerate(costs):
            if shares[i] == len(waiting):
                continue
            for j, groups in enumerate(costs):
                if shares[j] and waiting[shares[i]] <= groups[shares[j] - 1]:
                    assert spent[j] - groups[shares[j] - 1] <= spent[i]


def test_single_evaluations_are_split_evenly_and_the_odd_ones_go_to_the_earliest() -> None:
    assert fair_shares([[1] * 10] * 3, 11) == [4, 4, 3]
    assert fair_shares([[1] * 100, [1], [1] * 3], 12) == [8, 1, 3]


def test_many_guided_pairs_still_fill_the_microbatch() -> None:
    """Two branches and antithetic pairs make groups of four evaluations: with more requests
    than a sixteenth of the budget each, sixteen of them are served in full groups."""
    assert fair_shares([[4] * 8] * 40, 64) == [1] * 16 + [0] * 24
