"""What goes wrong with a request, in the catalogue's words; the service turns it to a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from carv.errors import FieldViolation, Reason

__all__ = ["RequestError", "invalid"]


class RequestError(Exception):
    """A request that fails, with the reason that the client will read.

    Attributes:
        violations: every field at fault.
        metadata: machine-readable facts for ErrorInfo.
        retry_delay_seconds: set where trying again helps.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_delay_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_delay_seconds = retry_delay_seconds


def invalid(violations: Sequence[FieldViolation]) -> RequestError:
    """INVALID_FIELD with every violation in the message too, for clients that read no details."""
    listed = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return RequestError(Reason.INVALID_FIELD, listed, violations=violations)
