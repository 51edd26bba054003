"""Real teachers for hard times, all around the oracle: they watch, wait, spoil or raise."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio
import torch

from carv import DEFAULT_MAX_MESSAGE_BYTES
from carv_server.config import ServerConfig
from carv_server.latents import DEFAULT_LATENT_STORE
from carv_server.request import RequestLimits
from carv_server.scheduler import SchedulerConfig
from carv_server.serve import RunningServer
from carv_server.store import StoreConfig
from carv_server.teachers.analytic import AnalyticTeacher
from carv_server.teachers.protocol import Source, Teacher, TeacherDescription, Tensors
from tests.support.oracle import oracle_mixture, oracle_schedule

__all__ = [
    "BusyTeacher",
    "FaultyTeacher",
    "GatedTeacher",
    "SlowTeacher",
    "Wrapped",
    "oracle_teacher",
    "running",
    "waiting",
]


def oracle_teacher() -> AnalyticTeacher:
    return AnalyticTeacher(oracle_mixture(), oracle_schedule())


class Wrapped:
    """The oracle, with something done ahead of each forward."""

    def __init__(self) -> None:
        self._inner = oracle_teacher()

    @property
    def description(self) -> TeacherDescription:
        return self._inner.description

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def encode(self, source: Source) -> Sequence[Tensors]:
        return self._inner.encode(source)

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        return self._inner.predict_noise(z_t, timesteps, conditioning)


class GatedTeacher(Wrapped):
    """Records the timesteps of every forward, and waits in each until its gate is open.

    Args:
        seconds: that a forward waits at most.

    Attributes:
        gate: set means open.
        entered: set once a forward waits.
        forwards: timesteps of the rows of each forward, in order.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        super().__init__()
        self._seconds = seconds
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.forwards: list[list[int]] = []

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        self.forwards.append(timesteps.tolist())
        self.entered.set()
        if not self.gate.wait(self._seconds):
            raise TimeoutError("the test never opened the gate")
        return super().predict_noise(z_t, timesteps, conditioning)


class SlowTeacher(Wrapped):
    """Takes a little while for each forward, so that no machine is too fast for a test.

    Attributes:
        forwards: how many have begun.
    """

    def __init__(self, seconds: float = 0.02) -> None:
        super().__init__()
        self._seconds = seconds
        self.forwards = 0

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        self.forwards += 1
        time.sleep(self._seconds)
        return super().predict_noise(z_t, timesteps, conditioning)


class FaultyTeacher(Wrapped):
    """NaN for rows at one timestep; raises where a row is at another."""

    def __init__(self, *, nan_at: int, raise_at: int) -> None:
        super().__init__()
        self._nan_at, self._raise_at = nan_at, raise_at

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        if bool((timesteps == self._raise_at).any()):
            raise MemoryError("out of device memory")
        noise = super().predict_noise(z_t, timesteps, conditioning).clone()
        noise[timesteps == self._nan_at, 0, 0, 0] = float("nan")
        return noise


class BusyTeacher(Wrapped):
    """Keeps a core busy with matrix products for a while in each forward."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._matrix = torch.eye(256)

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            self._matrix = self._matrix @ self._matrix
        return super().predict_noise(z_t, timesteps, conditioning)


async def waiting(server: RunningServer, requests: int) -> None:
    """Until so many requests wait in the teacher's queue."""
    scheduler = server._served["mixture"].scheduler
    for _ in range(1000):
        if scheduler.waiting.requests == requests:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{scheduler.waiting.requests} requests wait, not {requests}")


@asynccontextmanager
async def running(
    teacher: Teacher,
    *,
    scheduler: SchedulerConfig | None = None,
    store: StoreConfig | None = None,
    latents: StoreConfig = DEFAULT_LATENT_STORE,
    limits: RequestLimits | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> AsyncIterator[tuple[RunningServer, grpc.aio.Channel]]:
    """A server on this event loop, and a raw channel to it."""
    config = ServerConfig(
        address="127.0.0.1:0",
        max_message_bytes=max_message_bytes,
        drain_seconds=10.0,
        warm_up=False,  # these teachers record and hold their forwards
        scheduler=scheduler or SchedulerConfig(),
        store=store or StoreConfig(),
        latents=latents,
        limits=limits or RequestLimits(),
    )
    async with (
        RunningServer(config, {"mixture": teacher}) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield server, channel
