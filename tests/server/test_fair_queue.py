"""Laws of the queue, over random requests: nothing is lost or counted twice, budgets hold, tenants
get their shares, and within a tenant priority, rounds and deadlines decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from carv_server.scheduling.fair_queue import FairQueue, Waiting

BUDGET = 64


@dataclass(eq=False)
class Request:
    """Cells of given costs; ``got``: how many of them microbatches have taken."""

    costs: Sequence[int]
    tenant: str = ""
    priority: int = 0
    due: float = 0.0
    signature: str = ""
    got: int = 0
    order: list[int] = field(default_factory=list[int])

    @property
    def waiting_cells(self) -> int:
        return len(self.costs) - self.got

    @property
    def waiting_evaluations(self) -> int:
        return sum(self.costs[self.got :])

    def cell_cost(self, index: int) -> int:
        return self.costs[self.got + index]


def _ones(count: int, tenant: str = "", **more: float) -> Request:
    return Request([1] * count, tenant, **more)  # pyright: ignore[reportArgumentType]


def _queue(budget: int = BUDGET, **weights: float) -> FairQueue[Request]:
    return FairQueue(budget, weights)


def _take(queue: FairQueue[Request], most: int = BUDGET) -> dict[Request, int]:
    """Evaluations by request of one microbatch, cut off as the scheduler does."""
    taken: dict[Request, int] = {}
    for request, cells in queue.take(most):
        assert request not in taken and cells > 0
        taken[request] = sum(request.costs[request.got : request.got + cells])
        request.got += cells
    return taken


def _by_tenant(taken: dict[Request, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for request, evaluations in taken.items():
        found[request.tenant] += evaluations
    return found


def _check_counts(queue: FairQueue[Request], requests: Sequence[Request]) -> None:
    assert queue.requests == len(requests)
    assert queue.evaluations == sum(r.waiting_evaluations for r in requests)
    tenants = {r.tenant for r in requests}
    assert queue.by_tenant() == {
        t: Waiting(
            sum(r.tenant == t for r in requests),
            sum(r.waiting_evaluations for r in requests if r.tenant == t),
        )
        for t in tenants
    }


@pytest.mark.parametrize("seed", range(20))
def test_counts_budgets_and_signatures_hold_whatever_comes_and_goes(seed: int) -> None:
    rng = np.random.default_rng([20260521, seed])
    budget = int(rng.choice([1, 7, 64]))
    queue = _queue(budget, a=0.3, b=4.0)
    here: list[Request] = []
    for _ in range(400):
        match int(rng.integers(4)):
            case 0 | 1:
                request = Request(
                    rng.integers(1, rng.choice([2, 5, 90]), rng.integers(1, 40)).tolist(),
                    str(rng.choice(list("abcd"))),
                    int(rng.integers(-2, 3)),
                    float(rng.uniform()),
                    str(rng.choice(["x", "y"])),
                )
                queue.push(request)
                here.append(request)
            case 2 if here:
                gone = here.pop(int(rng.integers(len(here))))
                queue.discard(gone)
                queue.discard(gone)
            case _:
                taken = _take(queue, budget)
                assert bool(taken) == bool(here)
                assert len({r.signature for r in taken}) <= 1
                total = sum(taken.values())
                if total > budget:  # a cell that no microbatch could hold, by itself
                    (only,) = taken
                    assert only.costs[only.got - 1] == total
                here = [r for r in here if r.waiting_cells]
        _check_counts(queue, here)
    while here:
        assert _take(queue, budget)
        here = [r for r in here if r.waiting_cells]
        _check_counts(queue, here)
    assert not queue.take(budget)


def test_a_microbatch_is_full_while_single_evaluations_wait() -> None:
    rng = np.random.default_rng(3)
    queue = _queue()
    for _ in range(100):
        queue.push(_ones(int(rng.integers(1, 20)), str(rng.integers(5))))
    while queue.evaluations >= BUDGET:
        assert sum(_take(queue).values()) == BUDGET


@pytest.mark.parametrize(("weight", "share"), [(1.0, 1 / 2), (3.0, 3 / 4), (0.25, 1 / 5)])
def test_tenants_that_wait_get_evaluations_by_weight_whatever_their_requests(
    weight: float, share: float
) -> None:
    """In steady waiting, and at any time within one microbatch of it."""
    rng = np.random.default_rng(5)
    queue = _queue(few=weight)
    got: Counter[str] = Counter()
    for step in range(1, 401):
        while queue.waiting("many").evaluations < 4096:
            queue.push(_ones(int(rng.integers(1, 9)), "many"))
        while queue.waiting("few").evaluations < BUDGET:
            queue.push(Request([4] * int(rng.integers(1, 300)), "few"))
        got += _by_tenant(_take(queue))
        assert abs(got["few"] - share * step * BUDGET) <= BUDGET * max(1.0, weight)
    assert got["few"] == pytest.approx(share * 400 * BUDGET, rel=0.02)


def test_a_tenant_that_was_away_has_no_claim_to_that_time() -> None:
    queue = _queue()
    for tenant in ("a", "b"):
        queue.push(_ones(10_000, tenant))
    for _ in range(10):
        _take(queue)
    (of_b,) = [r for r in _all(queue) if r.tenant == "b"]
    queue.discard(of_b)
    for _ in range(10):
        assert _by_tenant(_take(queue)) == {"a": BUDGET}
    queue.push(_ones(10_000, "b"))
    got: Counter[str] = Counter()
    for _ in range(8):
        got += _by_tenant(_take(queue))
    assert got == {"a": 4 * BUDGET, "b": 4 * BUDGET}


def test_a_tenant_that_returns_is_in_the_next_microbatch() -> None:
    queue = _queue()
    for i in range(20):
        queue.push(_ones(10_000, f"flood {i}"))
    for _ in range(50):
        _take(queue)
    queue.push(_ones(8, "quiet"))
    assert _by_tenant(_take(queue))["quiet"] == 8


def test_short_requests_of_a_tenant_pass_its_long_one() -> None:
    queue = _queue(16)
    long, short, other = _ones(160), _ones(4), _ones(12)
    queue.push(long)
    assert _take(queue, 16) == {long: 16}
    queue.push(short)
    queue.push(other)
    assert _take(queue, 16) == {short: 4, other: 6, long: 6}
    assert _take(queue, 16) == {other: 6, long: 10}


def test_a_long_request_keeps_moving_under_a_stream_of_short_ones() -> None:
    """With 16 short ones always waiting it is one of 17; rounds are coarse."""
    queue = _queue()
    long = _ones(100_000)
    queue.push(long)
    got = 0
    for _ in range(500):
        while queue.requests < 17:
            queue.push(_ones(8))
        got += _take(queue).get(long, 0)
    assert 0.9 / 17 <= got / (500 * BUDGET) <= 1.4 / 17


def test_priority_then_deadline_then_arrival() -> None:
    queue = _queue(8)
    late, soon, first, second, urgent, idle = (
        _ones(1, due=9.0),
        _ones(1, due=1.0),
        _ones(1, due=5.0),
        _ones(1, due=5.0),
        _ones(1, due=99.0, priority=1),
        _ones(1, due=0.0, priority=-1),
    )
    for request in (late, soon, first, second, urgent, idle):
        queue.push(request)
    order = [next(iter(_take(queue, 1))) for _ in range(6)]
    assert order == [urgent, soon, first, second, late, idle]


def test_priority_has_no_say_between_tenants() -> None:
    queue = _queue()
    queue.push(_ones(1000, "loud", priority=10))
    queue.push(_ones(1000, "meek", priority=-10))
    got: Counter[str] = Counter()
    for _ in range(10):
        got += _by_tenant(_take(queue))
    assert got["loud"] == got["meek"]


def test_signatures_of_a_tenant_take_turns() -> None:
    queue = _queue()
    for signature in ("x", "y", "z"):
        queue.push(Request([1] * 1000, signature=signature))
    turns = ["".join({r.signature for r in _take(queue)}) for _ in range(9)]
    assert Counter(turns) == {"x": 3, "y": 3, "z": 3}


def test_what_came_back_goes_ahead() -> None:
    queue = _queue(8)
    before, lost = _ones(8, due=1.0), _ones(8, due=9.0)
    queue.push(lost)
    assert _take(queue, 8) == {lost: 8}
    queue.push(before)
    lost.got = 0
    queue.push(lost, ahead=True)
    assert queue.evaluations == 16
    assert _take(queue, 8) == {lost: 8}
    assert _take(queue, 8) == {before: 8}


def test_requests_that_leave_take_no_room() -> None:
    """Nothing is kept of 10,000 that came and left while no microbatch was formed."""
    queue = _queue()
    queue.push(_ones(5))
    for i in range(10_000):
        request = _ones(3, str(i))
        queue.push(request)
        queue.discard(request)
        request = _ones(3)
        queue.push(request)
        queue.discard(request)
    assert queue.by_tenant() == {"": Waiting(1, 5)}
    kept = len(queue._tenants) + len(queue._lanes)
    kept += sum(map(len, queue._groups.values()))
    kept += sum(len(lane.heap) for lane in queue._lanes.values())
    assert kept < 500
    assert sum(_take(queue).values()) == 5


def test_shares_among_those_waiting() -> None:
    queue = _queue(a=3.0)
    assert queue.share("a") == 1.0
    queue.push(_ones(1, "b"))
    assert (queue.share("a"), queue.share("b"), queue.share("c")) == (0.75, 1.0, 0.5)
    queue.push(_ones(1, "a"))
    assert (queue.share("a"), queue.share("b"), queue.share("c")) == (0.75, 0.25, 0.2)
    _take(queue, 1)
    _take(queue, 1)
    assert queue.share("b") == 1.0


def _all(queue: FairQueue[Request]) -> list[Request]:
    return queue.jobs()
