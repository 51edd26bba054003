"""What goes wrong with a request, in the catalogue's words; the service turns it to a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from carv.errors import FieldViolation, QuotaViolation, Reason

__all__ = ["RequestError", "handles_gone", "invalid"]


class RequestError(Exception):
    """A request that fails, with the reason that the client will read.

    Attributes:
        violations: every field at fault.
        metadata: machine-readable facts for ErrorInfo.
        retry_delay_seconds: set where trying again helps.
        quota_violations: of the tenant's own quotas.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_delay_seconds: float | None = None,
        quota_violations: Sequence[QuotaViolation] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_delay_seconds = retry_delay_seconds
        self.quota_violations = tuple(quota_violations)


def invalid(violations: Sequence[FieldViolation]) -> RequestError:
    """INVALID_FIELD with every violation in the message too, for clients that read no details."""
    return _listed(Reason.INVALID_FIELD, violations)


def handles_gone(
    conditionings: Mapping[str, str], latents: Mapping[str, str] | None = None
) -> RequestError:
    """LATENTS_NOT_FOUND where any are of latents, else CONDITIONING_NOT_FOUND, for handles by
    the fields that hold them."""
    latents = latents or {}
    return _listed(
        Reason.LATENTS_NOT_FOUND if latents else Reason.CONDITIONING_NOT_FOUND,
        [
            FieldViolation(
                field,
                f"handle {handle[:80]!r} is unknown to this teacher or has expired; "
                "create it again",
            )
            for field, handle in (*latents.items(), *conditionings.items())
        ],
    )


def _listed(reason: Reason, violations: Sequence[FieldViolation]) -> RequestError:
    listed = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return RequestError(reason, listed, violations=violations)
