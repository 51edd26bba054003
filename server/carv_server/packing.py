"""Pure packing: how a microbatch's evaluation budget is shared over waiting requests."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fair_shares"]


def fair_shares(demands: Sequence[int], budget: int) -> list[int]:
    """Max-min fair shares of a budget.

    Small demands are met in full; what they leave is split evenly over the larger ones, so a
    long request never holds a short one back. Earlier requests get the odd unit.

    Args:
        demands: evaluations that each request still wants, each at least 0.
        budget: evaluations that the microbatch holds.

    Returns:
        One share per demand, none above it; they sum to min(budget, sum of demands).
    """
    shares = [0] * len(demands)
    waiting = sorted(range(len(demands)), key=lambda i: demands[i])
    left = budget
    for position, i in enumerate(waiting):
        shares[i] = min(demands[i], left // (len(waiting) - position))
        left -= shares[i]
    for i, demand in enumerate(demands):
        extra = min(demand - shares[i], left)
        shares[i] += extra
        left -= extra
    return shares
