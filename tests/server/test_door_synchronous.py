"""A service whose methods are no coroutines (channelz' are none) cannot be put behind the door, and
so is closed to everybody."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from carv_server.guard import Guard
from carv_server.tenants.tenancy import Tenancy
from tests.support.tenants import bearer, tenant


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_a_synchronous_method_is_closed_also_to_who_has_a_key(kind: str) -> None:
    """gRPC would run it in a thread, whatever the interceptor has put around it. Breaks with: a
    handler that is returned as it is where it is no coroutine."""
    make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    handler = make(lambda request, context: b"")
    tenancy = Tenancy((tenant("a"),), {"mixture": None}, time.monotonic)
    guard = Guard(tenancy, lambda method: None)

    async def continuation(details: Any) -> Any:
        return handler

    call: Any = SimpleNamespace(
        method="/grpc.channelz.v1.Channelz/GetServers", invocation_metadata=bearer("a")
    )
    with pytest.raises(TypeError, match="not asynchronous"):
        asyncio.run(guard.intercept_service(continuation, call))
