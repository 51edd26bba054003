"""The way of one traced request through the queue: when its jobs waited, and what they were in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["JobWait", "MicrobatchRun", "Part", "WorkTrace", "note_run"]

# Spans of one request: a long one has thousands of parts.
_MOST_WAITS = 32
_MOST_RUNS = 64
_MOST_COMPANIONS = 8


@dataclass(frozen=True)
class JobWait:
    """A job in the queue, readings of the scheduler's clock.

    Attributes:
        started: when its first microbatch took some of it; None where none did.
        ended: when it was answered, failed or abandoned.
    """

    submitted: float
    started: float | None
    ended: float


@dataclass(frozen=True)
class MicrobatchRun:
    """A microbatch that held some of the request's draws.

    Attributes:
        number: of the microbatch, since the start of its queue.
        handed, ended: readings of the scheduler's clock.
        device_seconds: of the forward; 0 where it did not end.
        requests, evaluations: all of the microbatch's; ``own_evaluations``: this request's.
        outcome: "ran", "raised" or "lost".
        companions: identities of other traced requests in it, of the same tenant only.
    """

    number: int
    replica: str
    handed: float
    ended: float
    device_seconds: float
    requests: int
    evaluations: int
    own_evaluations: int
    outcome: str
    companions: tuple[object, ...]


class WorkTrace:
    """Filled by the queue on its event loop; bounded.

    Attributes:
        identity: stands for the request in the ``companions`` of others.
        left_out: waits and runs that did not fit.
    """

    __slots__ = ("identity", "left_out", "runs", "waits")

    def __init__(self, identity: object) -> None:
        self.identity = identity
        self.waits: list[JobWait] = []
        self.runs: list[MicrobatchRun] = []
        self.left_out = 0

    def waited(self, submitted: float, started: float | None, ended: float) -> None:
        if len(self.waits) < _MOST_WAITS:
            self.waits.append(JobWait(submitted, started, ended))
        else:
            self.left_out += 1

    def ran(self, run: MicrobatchRun) -> None:
        if len(self.runs) < _MOST_RUNS:
            self.runs.append(run)
        else:
            self.left_out += 1


class _Terms(Protocol):
    @property
    def tenant(self) -> str: ...
    @property
    def trace(self) -> WorkTrace | None: ...


class Part(NamedTuple):
    """A request's share of a microbatch."""

    terms: _Terms
    evaluations: int


def note_run(
    parts: Iterable[Part],
    number: int,
    replica: str,
    *,
    handed: float,
    ended: float,
    device_seconds: float,
    outcome: str,
) -> None:
    """Tell every traced request of a microbatch that it was in it."""
    known = list(parts)
    own: dict[WorkTrace, int] = {}
    tenants: dict[WorkTrace, str] = {}
    for terms, evaluations in known:
        if terms.trace is not None:
            own[terms.trace] = own.get(terms.trace, 0) + evaluations
            tenants[terms.trace] = terms.tenant
    total = sum(evaluations for _, evaluations in known)
    for trace, evaluations in own.items():
        others = [
            other.identity
            for other, tenant in tenants.items()
            if other is not trace and tenant == tenants[trace]
        ]
        trace.ran(
            MicrobatchRun(
                number,
                replica,
                handed,
                ended,
                device_seconds,
                len(known),
                total,
                evaluations,
                outcome,
                tuple(others[:_MOST_COMPANIONS]),
            )
        )
