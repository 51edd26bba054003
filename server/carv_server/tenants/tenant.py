"""A tenant as the operator describes it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tenant"]


@dataclass(frozen=True)
class Tenant:
    """One tenant.

    Attributes:
        weight: its share of the device while others wait too.
        evaluations_per_second: quota; None: none.
        evaluations_in_flight: quota; None: none.
        teachers: ids that it may use; None: all.
        token_sha256: SHA-256 of its bearer tokens, 32 bytes each.
        spiffe_ids: of the client certificates that are its own.
    """

    id: str
    weight: float = 1.0
    evaluations_per_second: float | None = None
    evaluations_in_flight: int | None = None
    teachers: frozenset[str] | None = None
    token_sha256: tuple[bytes, ...] = ()
    spiffe_ids: tuple[str, ...] = ()
