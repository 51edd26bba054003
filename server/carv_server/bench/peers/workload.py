"""What is denoised, as every contender is told it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_server.bench.load.folders import DEVICE, write_network, write_simulated
from carv_server.bench.peers.registry import NETWORK_SLOWNESS
from carv_server.bench.peers.scripts.work import TIMESTEP_BYTES, load_work

__all__ = ["EVENT_SHAPE", "MAX_BATCH", "Workload", "network", "simulated"]

EVENT_SHAPE = (4, 64, 64)
"""float32: 64 KiB a row."""
MAX_BATCH = 8
_TIMESTEP = 500

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """One denoiser and one request to it.

    Attributes:
        stated: of ``scripts.work``, without batching.
        teacher: the same denoiser as a folder of ``carv serve``.
        clients: of the closed loops.
        slowness: windows are so many times longer.
    """

    id: str
    title: str
    stated: Mapping[str, Any]
    teacher: Path
    clients: Sequence[int]
    slowness: float

    def work(self, window_seconds: float = 0.0) -> str:
        """For ``load_work``."""
        return json.dumps({**self.stated, "max_batch": MAX_BATCH, "window_seconds": window_seconds})

    @property
    def row(self) -> Float32Array:
        """z_t of the request, [*EVENT_SHAPE]."""
        return np.random.default_rng(0).normal(size=EVENT_SHAPE).astype(np.float32)

    @property
    def timestep(self) -> int:
        return _TIMESTEP

    @property
    def request(self) -> bytes:
        """The request's plain bytes."""
        return self.timestep.to_bytes(TIMESTEP_BYTES, "little") + self.row.tobytes()

    def answer(self) -> Float32Array:
        """eps_hat of the request, [*EVENT_SHAPE]."""
        timesteps = np.array([self.timestep])
        return load_work(self.work()).predict(self.row[np.newaxis], timesteps)[0]


def simulated(folder: Path, clients: Sequence[int]) -> Workload:
    """The simulated device; its teacher is written below ``folder``."""
    launch, row = DEVICE
    return Workload(
        id="simulated",
        title=f"simulated device, {1e3 * launch:g} ms a launch and {1e3 * row:g} ms a row",
        stated={
            "kind": "simulated",
            "event_shape": EVENT_SHAPE,
            "launch_seconds": launch,
            "row_seconds": row,
        },
        teacher=write_simulated(folder / "simulated", EVENT_SHAPE, launch, row),
        clients=clients,
        slowness=1.0,
    )


def network(folder: Path, clients: Sequence[int], shared_site: str) -> Workload:
    """A real network on one thread; ``shared_site`` is where torch and diffusers are installed."""
    target = folder / "network"
    parameters = write_network(target, EVENT_SHAPE)
    return Workload(
        id="network",
        title=f"UNet of {parameters / 1e6:.1f} million parameters, one CPU thread",
        stated={
            "kind": "network",
            "event_shape": EVENT_SHAPE,
            "folder": str(target.resolve()),
            "shared_site": shared_site,
        },
        teacher=target,
        clients=clients,
        slowness=NETWORK_SLOWNESS,
    )
