"""What a handler knows of its call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from carv_server.observability.notes import CallNotes
from carv_server.scheduling.terms import Terms
from carv_server.tenants.access import ANYONE, Access, access_check
from carv_server.tenants.quota import Meter

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """What a handler knows of its call.

    Attributes:
        started: perf_counter seconds at arrival.
        deadline: on the scheduler's clock; None where the client set none.
        caller: the connection that it came by.
        tenant: whose it is.
        size: of the request, in bytes.
        access: what its tenant may use.
        notes: what the handler says of it, for those who watch.
    """

    started: float
    deadline: float | None
    caller: str = ""
    tenant: str = ""
    size: int = 0
    access: Access = ANYONE
    notes: CallNotes = field(default_factory=CallNotes)

    def terms(self, priority: int) -> Terms:
        """Of work that is paid for."""
        return Terms(self.deadline, self.tenant, priority, self.caller, trace=self.notes.work_trace)

    def metered_terms(self, priority: int, teacher: str) -> Terms:
        """Of work that is charged piece by piece, as long as the tenant has the teacher."""
        quota = self.access.quota
        meter = None if quota is None else Meter(quota, access_check(teacher))
        return Terms(
            self.deadline, self.tenant, priority, self.caller, meter, self.notes.work_trace
        )

    def charged(self, evaluations: int) -> AbstractContextManager[None]:
        """Around so many evaluations; raises RequestError QUOTA_EXCEEDED."""
        quota = self.access.quota
        return nullcontext() if quota is None else quota.charged(evaluations)
