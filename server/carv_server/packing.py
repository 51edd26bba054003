"""Pure packing: how a microbatch's evaluation budget is shared over waiting requests."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

__all__ = ["fair_shares"]


def fair_shares(costs: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Max-min fair shares of a budget, in whole cells of draws, by progressive filling.

    The next cell goes to the request that has been given least, the earlier one where they
    are equal. So small requests are met in full, a long one never holds a short one back, and
    no part of the budget is left that a waiting cell would fit into.

    Args:
        costs: for each request, evaluations of the cells that it waits for, in order.
        budget: evaluations that the microbatch holds.

    Returns:
        Number of cells for each request. Their costs sum to at most the budget, except where
        the first request's first cell alone is above it: that runs by itself, or it never would.
    """
    shares = [0] * len(costs)
    left = budget
    given = [(0, i) for i, groups in enumerate(costs) if groups]
    while given and left > 0:
        spent, i = heapq.heappop(given)
        cost = costs[i][shares[i]]
        if cost > left and left < budget:
            continue
        shares[i] += 1
        left -= cost
        if shares[i] < len(costs[i]):
            heapq.heappush(given, (spent + cost, i))
    return shares
