"""Whether a partial microbatch on an idle device should wait for requests that are expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Expected", "hold_seconds"]

# Forecasts are rough: what is gained must be more than this share of the rate.
_LEAST_GAIN = 0.05


class Expected(NamedTuple):
    """A request that should arrive after so many seconds, with so many evaluations."""

    seconds: float
    evaluations: int


def hold_seconds(
    waiting: int,
    budget: int,
    launch_seconds: float,
    row_seconds: float,
    expected: Iterable[Expected],
    most_seconds: float,
) -> float:
    """How much longer to wait; 0: start now.

    Started now, w evaluations run, and the e that arrive meanwhile, the budget at most, go next:
    (w + e) / (2 launch + (w + e) row) evaluations a second. Held for h seconds, w' run at once,
    those that arrive by then included: w' / (h + launch + w' row). The h of the highest rate is
    taken, if it is at most ``most_seconds`` and the gain is worth it. Where that is 0, as without a
    cost of launching, nothing is waited for.
    """
    if most_seconds <= 0.0 or waiting >= budget:
        return 0.0
    arrivals = sorted(expected)
    first = launch_seconds + waiting * row_seconds
    coming = min(budget, sum(e.evaluations for e in arrivals if e.seconds <= first))
    rows = waiting + coming
    best = (1.0 + _LEAST_GAIN) * rows / (2.0 * launch_seconds + rows * row_seconds)
    hold, rows = 0.0, waiting
    for seconds, evaluations in arrivals:
        if rows >= budget or seconds > most_seconds:
            break
        rows = min(budget, rows + evaluations)
        rate = rows / (seconds + launch_seconds + rows * row_seconds)
        if rate > best:
            best, hold = rate, seconds
    return hold
