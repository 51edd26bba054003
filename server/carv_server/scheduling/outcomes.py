"""How a job ends other than with its result."""

from __future__ import annotations

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.replicas.protocol import NonFiniteDraw, Work
from carv_server.scheduling.job import Job

__all__ = [
    "drained",
    "expire",
    "expired",
    "no_replica",
    "non_finite",
    "replica_failed",
    "replicas_lost",
    "server_defect",
]

_NO_REPLICA_RETRY_SECONDS = 2.0


def expire(job: Job, now: float) -> None:
    """Fail a job whose deadline has passed, if it is not over."""
    deadline = job.terms.deadline
    if deadline is not None and deadline <= now:
        job.fail(expired(now - job.submitted, job.undelivered_evaluations))


def expired(seconds: float, evaluations: int) -> RequestError:
    return RequestError(
        Reason.DEADLINE_EXPIRED,
        f"the deadline passed {seconds:.3f} s after admission; {evaluations} evaluations were not "
        "computed",
    )


def drained() -> RequestError:
    return RequestError(Reason.DRAINING, "the server has stopped; send it elsewhere")


def no_replica(message: str) -> RequestError:
    return RequestError(Reason.NO_REPLICA, message, retry_delay_seconds=_NO_REPLICA_RETRY_SECONDS)


def replica_failed(error: BaseException) -> RequestError:
    """Its type alone: a trace is for the log."""
    return RequestError(
        Reason.REPLICA_FAILED,
        f"the teacher's forward raised {type(error).__name__}; the server's log has the trace",
    )


def replicas_lost(attempts: int) -> RequestError:
    """Not worth trying again: the request may be what brings replicas down."""
    return RequestError(
        Reason.REPLICA_FAILED, f"{attempts} replicas were lost while they ran rows of this request"
    )


def server_defect() -> RequestError:
    return RequestError(Reason.INTERNAL, "a defect of the server; its log has the trace")


def non_finite(work: Work, draw: NonFiniteDraw) -> RequestError:
    return RequestError(
        Reason.NON_FINITE_RESULT,
        f"the teacher gave a non-finite result for render {draw.render} at timestep "
        f"{draw.timestep}, noise index {draw.noise_index}, seed {work.seed}",
        metadata={
            "render": str(draw.render),
            "timestep": str(draw.timestep),
            "noise_index": str(draw.noise_index),
            "seed": str(work.seed),
        },
    )
