"""What the credential of a call gives access to."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from carv.errors import FieldViolation, Reason
from carv_server.errors import RequestError
from carv_server.tenants.quota import Quota

__all__ = [
    "ANYONE",
    "Access",
    "Credential",
    "access_check",
    "current_access",
    "current_credential",
    "denied",
]


@dataclass(frozen=True)
class Access:
    """A tenant, as it is now.

    Attributes:
        teachers: ids that it may use; None: all.
        quota: None: none.
    """

    tenant: str
    teachers: frozenset[str] | None = None
    quota: Quota | None = None

    def allows(self, teacher: str) -> bool:
        return self.teachers is None or teacher in self.teachers


ANYONE = Access("")
"""Of all callers, where there are no tenants."""


class Credential:
    """A token or a SPIFFE id that is known, for as long as any call holds it.

    Attributes:
        access: of its tenant, renewed as tenants change; None once it was taken out.
    """

    __slots__ = ("access",)

    def __init__(self, access: Access | None) -> None:
        self.access = access


current_credential: ContextVar[Credential | None] = ContextVar("credential", default=None)
"""Of the call that is being handled. Every call runs in a context of its own."""


def current_access() -> Access:
    """Of the call that is being handled, as it is now.

    Raises:
        RequestError: UNAUTHENTICATED, where the credential was taken out while a stream was open.
    """
    return _present(current_credential.get())


def access_check(teacher: str) -> Callable[[], None]:
    """For a call that goes on for long: raises RequestError once its credential is no longer its
    tenant's, UNAUTHENTICATED, or the tenant may no longer use the teacher, TEACHER_NOT_ALLOWED.

    Raises:
        RequestError: UNAUTHENTICATED, where that is so already.
    """
    credential = current_credential.get()
    tenant = _present(credential).tenant

    def check() -> None:
        access = _present(credential)
        if access.tenant != tenant:
            raise denied()
        if not access.allows(teacher):
            message = f"teacher {teacher!r} is no longer for you"
            violations = [FieldViolation("teacher", message)]
            raise RequestError(Reason.TEACHER_NOT_ALLOWED, message, violations=violations)

    return check


def _present(credential: Credential | None) -> Access:
    if credential is None:
        return ANYONE
    if credential.access is None:
        raise denied()
    return credential.access


def denied() -> RequestError:
    """The same for a missing and for a wrong credential."""
    return RequestError(
        Reason.UNAUTHENTICATED,
        "no valid credential: send metadata `authorization: Bearer TOKEN`, or use a client "
        "certificate that the server knows",
    )
