"""The tenants of a running server: who a credential belongs to, while the list changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carv_server.tenants.access import Access, Credential
from carv_server.tenants.quota import Quota
from carv_server.tenants.tenant import Tenant

__all__ = ["Tenancy", "TenancyConfig"]

_WORDS = 4  # of 64 bits in a digest
_MOST_LEFT_OVER = 1000


@dataclass(frozen=True)
class TenancyConfig:
    """Who may call.

    Attributes:
        file: where they are read again from as it changes; None: never.
        reload_seconds: within this time a change of it is taken.
    """

    tenants: tuple[Tenant, ...]
    file: Path | None = None
    reload_seconds: float = 2.0


class Weights(Mapping[str, float]):
    """Weights by tenant, as they are now."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}

    def __getitem__(self, tenant: str) -> float:
        return self.now[tenant]

    def __iter__(self) -> Iterator[str]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


class Tenancy:
    """Credentials to access. Lives on one event loop.

    Args:
        allowed: by teacher, the tenants that it is kept for; None: all.
        clock: monotonic seconds, for quotas.

    Attributes:
        tenants: by id; always the present ones, and so are ``weights``.
    """

    def __init__(
        self,
        tenants: Iterable[Tenant],
        allowed: Mapping[str, frozenset[str] | None],
        clock: Callable[[], float],
    ) -> None:
        self._allowed = allowed
        self._clock = clock
        self._quotas: dict[str, Quota] = {}
        # Of tenants that were taken out before all was paid: coming back must not wipe that out.
        self._left_over: dict[str, Quota] = {}
        self._by_token: dict[bytes, Credential] = {}
        self._by_spiffe_id: dict[str, Credential] = {}
        self._known: dict[bytes, Credential] = {}  # no more than there are digests
        self._digests = np.empty((0, _WORDS), dtype=np.uint64)
        self._owners: Sequence[Credential] = ()
        self.tenants: Mapping[str, Tenant] = {}
        self.weights = Weights()
        self.replace(tenants)

    def replace(self, tenants: Iterable[Tenant]) -> None:
        """Make these the tenants. Quotas keep what was used of them, also while their tenant is
        not there. What was taken out opens no call any more, and no further request or piece of
        one that is in progress; what is being computed goes on."""
        present = {tenant.id: tenant for tenant in tenants}
        before = {**self._left_over, **self._quotas}
        quotas: dict[str, Quota] = {}
        tokens: dict[bytes, Credential] = {}
        spiffe_ids: dict[str, Credential] = {}
        weights: dict[str, float] = {}
        for tenant in present.values():
            quota = before.get(tenant.id) or Quota(tenant.id, self._clock)
            quota.set(tenant.evaluations_per_second, tenant.evaluations_in_flight)
            quotas[tenant.id] = quota
            weights[tenant.id] = tenant.weight
            access = Access(tenant.id, self._teachers(tenant), quota)
            for digest in tenant.token_sha256:
                tokens[digest] = _renewed(self._by_token.get(digest), access)
            for name in tenant.spiffe_ids:
                spiffe_ids[name] = _renewed(self._by_spiffe_id.get(name), access)
        for digest, credential in self._by_token.items():
            if digest not in tokens:
                credential.access = None
        for name, credential in self._by_spiffe_id.items():
            if name not in spiffe_ids:
                credential.access = None
        owing = [(i, q) for i, q in before.items() if i not in quotas and not q.settled]
        self._left_over = dict(owing[-_MOST_LEFT_OVER:])
        self._quotas, self._by_token, self._by_spiffe_id = quotas, tokens, spiffe_ids
        self.tenants, self.weights.now = present, weights
        self._known = {}
        self._owners = list(tokens.values())
        joined = b"".join(tokens)
        self._digests = np.frombuffer(joined, dtype=np.uint64).reshape(len(tokens), _WORDS)

    def by_token(self, token: bytes) -> Credential | None:
        """Whose token it is. Compares its digest with all of them, in a time that does not depend
        on where or how far they agree; one that has been found is known from then on."""
        known = self._known.get(token)
        if known is not None:
            return known
        digest = np.frombuffer(hashlib.sha256(token).digest(), dtype=np.uint64)
        differences = np.bitwise_or.reduce(self._digests ^ digest, axis=1)
        found = np.flatnonzero(differences == 0)
        if not len(found):
            return None
        owner = self._known[token] = self._owners[int(found[0])]
        return owner

    def by_spiffe_id(self, name: str) -> Credential | None:
        """Whose certificate it is; TLS has verified it."""
        return self._by_spiffe_id.get(name)

    @property
    def knows_certificates(self) -> bool:
        """Whether any tenant has a SPIFFE id."""
        return bool(self._by_spiffe_id)

    def _teachers(self, tenant: Tenant) -> frozenset[str] | None:
        found = frozenset(
            teacher
            for teacher, kept_for in self._allowed.items()
            if (tenant.teachers is None or teacher in tenant.teachers)
            and (kept_for is None or tenant.id in kept_for)
        )
        return None if len(found) == len(self._allowed) else found


def _renewed(credential: Credential | None, access: Access) -> Credential:
    if credential is None:
        return Credential(access)
    credential.access = access
    return credential
