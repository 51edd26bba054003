"""Who may still join the queue."""

from __future__ import annotations

from carv_server.scheduling.config import SchedulerConfig
from carv_server.scheduling.fair_queue import Waiting

__all__ = ["is_admitted"]

# However many tenants there are, no more than this multiple of a bound waits.
_OVERFLOW = 2


def is_admitted(
    evaluations: int, total: Waiting, own: Waiting, share: float, config: SchedulerConfig
) -> bool:
    """Whether a request of so many evaluations may wait.

    Up to the bounds on the whole queue every tenant may. Beyond them one may that stays within its
    share of the bounds, or has nothing waiting, so that a flood from one tenant shuts out no other.
    An empty queue takes any request, since one above the bound could never run otherwise.

    Args:
        total, own: what waits now, of all tenants and of this one.
        share: this tenant's weight among those waiting, itself included; at most 1.
    """
    if total.requests == 0:
        return True
    most, most_requests = config.max_waiting_evaluations, config.max_waiting_requests
    if total.evaluations + evaluations <= most and total.requests < most_requests:
        return True
    if share >= 1.0 or (
        total.evaluations >= _OVERFLOW * most or total.requests >= _OVERFLOW * most_requests
    ):
        return False
    return own.requests == 0 or (
        own.evaluations + evaluations <= share * most and own.requests < share * most_requests
    )
