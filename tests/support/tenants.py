"""Servers with tenants, on the event loop of the test."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from carv_server.config import ServerConfig
from carv_server.serve import RunningServer
from carv_server.teachers.protocol import Teacher
from carv_server.tenants.tenancy import TenancyConfig
from carv_server.tenants.tenant import Tenant

__all__ = ["bearer", "digest", "serving", "tenant", "token_of"]


def token_of(tenant_id: str) -> str:
    return f"token-of-{tenant_id}"


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def tenant(tenant_id: str, **terms: Any) -> Tenant:
    """One with the token ``token_of`` its id."""
    return Tenant(tenant_id, token_sha256=(digest(token_of(tenant_id)),), **terms)


def bearer(tenant_id: str) -> tuple[tuple[str, str], ...]:
    """Its metadata."""
    return (("authorization", f"Bearer {token_of(tenant_id)}"),)


@asynccontextmanager
async def serving(
    teachers: Mapping[str, Teacher],
    tenants: Sequence[Tenant],
    *,
    file: Path | None = None,
    **config: Any,
) -> AsyncIterator[RunningServer]:
    whole = ServerConfig(
        address="127.0.0.1:0",
        warm_up=False,
        drain_seconds=5.0,
        tenancy=TenancyConfig(tuple(tenants), file, reload_seconds=0.05),
        **config,
    )
    async with RunningServer(whole, teachers) as server:
        yield server
