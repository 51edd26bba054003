"""What a handler notes down about its call, in plain assignments, to be read at its end."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from carv_server.observability.labels import NONE
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import Resolved
from carv_server.scheduling.trace import WorkTrace

__all__ = ["CallNotes", "CallTrace", "Sampled"]


class CallTrace(Protocol):
    """A call that is traced."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        ...

    @property
    def work(self) -> WorkTrace: ...

    def checked(self) -> None:
        """The request has been read and checked."""
        ...

    def end(self, call: CallNotes, code: int, reason: str) -> None: ...


class Sampled(NamedTuple):
    """How an answered request's draws were made, and what came of it.

    Attributes:
        objective, use_reference, label: name the history; see ``history_key``.
        resolved: None for the client's own draws.
        noise_variance: float64 [R]; None where unavailable.
        effective_sample_size: float64 [R], of ``draws`` each; None where there is none.
    """

    objective: ObjectiveTables
    use_reference: tuple[bool, ...]
    label: str
    resolved: Resolved | None
    noise_variance: npt.NDArray[np.float64] | None
    effective_sample_size: npt.NDArray[np.float64] | None
    draws: int


class CallNotes:
    """Filled by handlers; on its own it is read by nobody.

    Attributes:
        method, tenant: labels; the tenant as it is in ``tenant_id``.
        teacher: id, once known.
        draws, evaluations, compute_seconds: as the last reply says.
        sampled: of a gradient.
        trace: None where the call is not traced.
    """

    __slots__ = (
        "compute_seconds",
        "draws",
        "evaluations",
        "method",
        "sampled",
        "teacher",
        "tenant",
        "tenant_id",
        "trace",
    )

    def __init__(self) -> None:
        self.method = ""
        self.tenant = NONE
        self.tenant_id = ""
        self.teacher = NONE
        self.draws = self.evaluations = 0
        self.compute_seconds = 0.0
        self.sampled: Sampled | None = None
        self.trace: CallTrace | None = None

    @property
    def work_trace(self) -> WorkTrace | None:
        return None if self.trace is None else self.trace.work

    def checked(self) -> None:
        if self.trace is not None:
            self.trace.checked()

    def spent(self, draws: int, evaluations: int, compute_seconds: float) -> None:
        """What a reply says was spent so far."""
        self.draws, self.evaluations = draws, evaluations
        self.compute_seconds = compute_seconds
