"""Whether the server can take work, for all who ask: grpc.health.v1 on both ports, and /readyz."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from grpc_health.v1 import health, health_pb2

__all__ = ["LIVENESS", "Readiness"]

_log = logging.getLogger(__name__)

LIVENESS = "liveness"
"""A service name that is SERVING for as long as the process answers: for probes that restart it."""

_LOOK_SECONDS = 1.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Readiness:
    """The server ("") and its service are SERVING from ``open`` to ``close``, but for while no
    teacher has a replica: all requests would be refused.

    Args:
        service_name: of the service, beside "" for the server.
        have_replica: of each teacher.
        tell: told ``ready`` and ``draining`` with every change.

    Attributes:
        servicer: of grpc.health.v1.
    """

    def __init__(
        self,
        service_name: str,
        have_replica: Sequence[Callable[[], bool]],
        tell: Callable[[bool, bool], None],
    ) -> None:
        self._names = ("", service_name)
        self._have_replica = have_replica
        self._tell = tell
        self._looking: asyncio.Task[None] | None = None
        # The module gains its `aio` attribute at import, out of a type checker's sight.
        self.servicer: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]

    async def begin(self) -> None:
        """Alive, and not ready."""
        await self.servicer.set(LIVENESS, _SERVING)
        await self._set(_NOT_SERVING)

    async def open(self) -> None:
        """Ready, and from now on by whether there are replicas."""
        await self._set(_SERVING)
        self._tell(True, False)
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Not ready any more: the server drains."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        await self._set(_NOT_SERVING)
        self._tell(False, True)

    async def _look(self) -> None:
        ready = True
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if any(has() for has in self._have_replica) is ready:
                continue
            ready = not ready
            if ready:
                _log.info("there is a replica again: health says SERVING")
            else:
                _log.warning("no teacher has a replica: health says NOT_SERVING until one is back")
            await self._set(_SERVING if ready else _NOT_SERVING)
            self._tell(ready, False)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in self._names:
            await self.servicer.set(name, status)
