"""Label values: sets that the configuration and the contract bound, whatever clients send."""

from __future__ import annotations

from collections.abc import Iterable

from carv.v1 import teacher_service_pb2 as pb

__all__ = ["CODES", "METHODS", "NONE", "OTHER", "STREAM_REQUEST", "TenantLabels", "method_label"]

OTHER = "other"
"""Stands for all that the configuration does not name."""
NONE = "none"
"""No tenants are configured, or no teacher was known yet. No tenant's id."""

STREAM_REQUEST = "StreamGradients/request"
"""Method of one request on a stream; StreamGradients itself is the call around them."""

METHODS: tuple[str, ...] = (
    *pb.DESCRIPTOR.services_by_name["TeacherService"].methods_by_name,
    STREAM_REQUEST,
    OTHER,
)
_METHODS = frozenset(METHODS)

CODES: tuple[str, ...] = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""Names of gRPC's status codes, by number."""

_MOST_TENANTS = 1000


def method_label(name: str) -> str:
    return name if name in _METHODS else OTHER


class TenantLabels:
    """Ids of configured tenants, as labels. A tenant that a new configuration drops stays one:
    what was counted under it goes on.

    Args:
        tenants: ids; the first thousand ever known have labels of their own.
    """

    def __init__(self, tenants: Iterable[str] = ()) -> None:
        self._labels = {"": NONE}
        self.know(tenants)

    def know(self, tenants: Iterable[str]) -> None:
        """Add the tenants of a new configuration."""
        for tenant in tenants:
            if len(self._labels) <= _MOST_TENANTS:
                self._labels.setdefault(tenant, tenant)

    def __call__(self, tenant: str) -> str:
        return self._labels.get(tenant, OTHER)
