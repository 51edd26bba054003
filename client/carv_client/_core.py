"""What every call of the client rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from carv_client._config import ClientConfig
from carv_client._handles import Handles
from carv_client._transport import Deadline, Transport

__all__ = ["ClientCore", "Randomness"]


@dataclass(frozen=True)
class Randomness:
    """Where a client's own choices come from.

    Attributes:
        jitter: uniform on [0, 1), to spread retries.
        new_seed: uniform on 0 .. 2^64 - 1, for submitted requests without a seed.
    """

    jitter: Callable[[], float]
    new_seed: Callable[[], int]


class ClientCore:
    """A transport, the handles in use on it, and deadlines."""

    def __init__(self, config: ClientConfig, randomness: Randomness) -> None:
        self.config = config
        self._new_seed = randomness.new_seed
        self._transport = Transport(config, randomness.jitter)
        several = config.load_balancing == "round_robin"
        self._handles = Handles(self._transport, several_servers=several)

    async def close(self) -> None:
        """Close the connection. Calls in flight end with ClientClosedError."""
        await self._transport.close()

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self.config.timeout_seconds if timeout is None else timeout)
