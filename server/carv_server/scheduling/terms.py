"""Who asks, and how soon it matters."""

from __future__ import annotations

from dataclasses import dataclass

from carv_server.scheduling.trace import WorkTrace
from carv_server.tenants.quota import Meter

__all__ = ["MAX_PRIORITY", "MIN_PRIORITY", "Terms"]

MIN_PRIORITY, MAX_PRIORITY = -10, 10


@dataclass(frozen=True)
class Terms:
    """The terms on which work is submitted.

    Attributes:
        deadline: reading of the scheduler's clock after which nothing of it is computed; None:
            none.
        tenant: whom the device's time is charged to.
        priority: within the tenant alone, ``MIN_PRIORITY`` .. ``MAX_PRIORITY``; higher goes first.
        caller: who waits for the answer, such as a connection. Callers that ask again right after
            each answer are expected to; "" stands for all callers without a name.
        meter: charged for each work; None: what is submitted is paid for.
        trace: told of the way through the queue, where the request is traced.
    """

    deadline: float | None = None
    tenant: str = ""
    priority: int = 0
    caller: str = ""
    meter: Meter | None = None
    trace: WorkTrace | None = None
