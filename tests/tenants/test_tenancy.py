"""Credentials to tenants while the list changes."""

from __future__ import annotations

import pytest

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.tenants.access import Credential
from carv_server.tenants.quota import Quota
from carv_server.tenants.tenancy import Tenancy
from carv_server.tenants.tenant import Tenant
from tests.support.tenants import digest, tenant, token_of

SERVED = {"one": None, "two": None, "kept": frozenset({"b"})}


def _tenancy(*tenants: Tenant) -> Tenancy:
    return Tenancy(tenants, SERVED, lambda: 0.0)


def _tenant_of(credential: Credential | None) -> str | None:
    return None if credential is None or credential.access is None else credential.access.tenant


def test_each_token_is_its_tenants() -> None:
    """Breaks with: a comparison of half of the digest's words, or of the first tenant's only."""
    names = [f"t{i}" for i in range(300)]
    tenancy = _tenancy(*map(tenant, names))
    assert [_tenant_of(tenancy.by_token(token_of(name).encode())) for name in names] == names
    for wrong in (b"", b"token-of-t", b"token-of-t1 ", b"TOKEN-OF-T1", digest(token_of("t1"))):
        assert tenancy.by_token(wrong) is None


def test_without_tenants_nobody_has_access() -> None:
    tenancy = _tenancy()
    assert tenancy.by_token(b"") is None
    assert tenancy.by_spiffe_id("") is None


def test_a_tenant_with_two_tokens_and_a_certificate_is_one() -> None:
    name = "spiffe://carv.test/a"
    tenancy = _tenancy(Tenant("a", token_sha256=(digest("x"), digest("y")), spiffe_ids=(name,)))
    found = [tenancy.by_token(b"x"), tenancy.by_token(b"y"), tenancy.by_spiffe_id(name)]
    assert [_tenant_of(each) for each in found] == ["a"] * 3
    assert len({id(each.access.quota) for each in found if each and each.access}) == 1
    assert tenancy.knows_certificates


@pytest.mark.parametrize(
    ("tenant_id", "teachers", "allowed"),
    [
        ("a", None, {"one", "two"}),
        ("b", None, None),
        ("a", {"two", "kept"}, {"two"}),
        ("b", {"kept"}, {"kept"}),
        ("b", set(), set()),
    ],
)
def test_teachers_by_tenant_and_tenants_by_teacher(
    tenant_id: str, teachers: set[str] | None, allowed: set[str] | None
) -> None:
    """Breaks with: either list ignored."""
    own = None if teachers is None else frozenset(teachers)
    credential = _tenancy(tenant(tenant_id, teachers=own)).by_token(token_of(tenant_id).encode())
    assert credential is not None and credential.access is not None
    assert credential.access.teachers == allowed
    for teacher in SERVED:
        assert credential.access.allows(teacher) == (allowed is None or teacher in allowed)


def test_what_is_taken_out_holds_no_longer() -> None:
    """Also for those that hold the credential: a stream that is open. Breaks with: `replace`
    leaving old credentials alone."""
    tenancy = _tenancy(tenant("a"), tenant("b", weight=2.0))
    a, b = (tenancy.by_token(token_of(name).encode()) for name in "ab")
    assert a is not None and b is not None and b.access is not None
    quota = b.access.quota
    tenancy.replace([tenant("b", weight=3.0, teachers=frozenset({"one"}))])
    assert a.access is None and tenancy.by_token(token_of("a").encode()) is None
    assert b.access is not None and b.access.teachers == {"one"}, (
        "the same credential, as it is now"
    )
    assert b.access.quota is quota, "what was used of it counts"
    assert dict(tenancy.weights) == {"b": 3.0}


def _quota_of(tenancy: Tenancy, name: str) -> Quota:
    credential = tenancy.by_token(token_of(name).encode())
    assert credential is not None and credential.access is not None
    assert credential.access.quota is not None
    return credential.access.quota


def test_a_tenant_that_comes_back_finds_what_it_owes() -> None:
    """A list that lacks it for a moment must not wipe that out. Once all is paid it is forgotten.

    Breaks with: quotas of those that are present alone.
    """
    now = [0.0]
    limited = tenant("a", evaluations_per_second=10.0, evaluations_in_flight=30)
    tenancy = Tenancy([limited], SERVED, lambda: now[0])
    quota = _quota_of(tenancy, "a")
    with quota.charged(25):
        tenancy.replace([])
        tenancy.replace([tenant("b")])
        tenancy.replace([limited])
        assert _quota_of(tenancy, "a") is quota and quota.in_flight == 25
        tenancy.replace([])
    tenancy.replace([limited])
    assert quota.in_flight == 0
    with pytest.raises(RequestError) as caught, _quota_of(tenancy, "a").charged(1):
        pass
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    tenancy.replace([])
    now[0] += 2.4
    tenancy.replace([])
    assert list(tenancy._left_over) == ["a"]
    now[0] += 0.2
    tenancy.replace([])
    assert not tenancy._left_over


def test_what_is_owed_by_those_who_left_is_bounded() -> None:
    """The oldest go first. Breaks with: no bound."""
    tenancy = Tenancy([], SERVED, lambda: 0.0)
    for i in range(1200):
        name = f"t{i}"
        tenancy.replace([tenant(name, evaluations_per_second=1.0)])
        with _quota_of(tenancy, name).charged(1):
            pass
    tenancy.replace([])
    assert list(tenancy._left_over) == [f"t{i}" for i in range(200, 1200)]


def test_quotas_without_a_rate_owe_nothing() -> None:
    tenancy = Tenancy([tenant("a", evaluations_in_flight=3)], SERVED, lambda: 0.0)
    with _quota_of(tenancy, "a").charged(3):
        tenancy.replace([])
        assert list(tenancy._left_over) == ["a"]
    tenancy.replace([])
    assert not tenancy._left_over
