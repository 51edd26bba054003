"""The client. Asynchronous; ``_sync`` offers the same methods to blocking code.

_core ← _teachers ← _gradients ┐
_core ← _refining              ├ AsyncTeacherClient
_core ← _measuring             ┘
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Self

from carv_client._config import DEFAULT_ADDRESS, ClientConfig, configured
from carv_client._core import Randomness
from carv_client._gradients import GradientCalls
from carv_client._measuring import MeasuringCalls
from carv_client._refining import RefinementCalls

__all__ = ["AsyncTeacherClient"]


class AsyncTeacherClient(GradientCalls, RefinementCalls, MeasuringCalls):
    """A client of one CARV server, for asyncio.

    Belongs to the event loop that first uses it; any number of calls may be in flight at once.
    Every method raises ``CarvError`` and its kinds, takes ``timeout`` in seconds (by default
    ``ClientConfig.timeout_seconds``), and takes ``teacher`` as an id (by default that of the
    conditioning given, else the server's first).

    Args:
        target: address of the server, ``host:port``, or a whole configuration.
        token: of the tenant; sent with every call, with TLS or to this machine alone.
        root_certificates: PEM roots to trust; turns TLS on.
        private_key, certificate_chain: PEM, of the client, for mutual TLS; these four take the
            place of the configuration's own.
        jitter: uniform on [0, 1), to spread retries; a generator of its own by default.
        new_seed: seeds below 2^64 for submitted requests without one; by default of the system's
            randomness.
    """

    def __init__(
        self,
        target: str | ClientConfig = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        root_certificates: bytes | None = None,
        private_key: bytes | None = None,
        certificate_chain: bytes | None = None,
        jitter: Callable[[], float] | None = None,
        new_seed: Callable[[], int] | None = None,
    ) -> None:
        config = configured(
            target,
            token=token,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
        )
        randomness = Randomness(
            jitter or random.Random().random,
            new_seed or (lambda: secrets.randbits(64)),
        )
        super().__init__(config, randomness)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
