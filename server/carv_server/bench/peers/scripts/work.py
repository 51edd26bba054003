"""The denoising that every contender serves: eps_hat(z_t, t), one row a request, in batches.

Runs in the contenders' own environments, so it needs numpy alone; a network also needs torch and
diffusers, which it finds in the environment of the benchmark (``shared_site``), so that every
contender computes with the same build of them. The scripts beside it read what to serve, and
where, from two environment variables, because several frameworks start workers of their own that
inherit nothing else.

A request's bytes are the timestep, int64, and z_t, float32 [*event_shape]; the answer's are
eps_hat, float32 [*event_shape]; all little-endian.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

PORT_VARIABLE = "CARV_PEER_PORT"
WORK_VARIABLE = "CARV_PEER_WORK"
TIMESTEP_BYTES = 8
TIMESTEPS = 1000

Float32Array = npt.NDArray[np.float32]


class Work(Protocol):
    """What is served.

    Attributes:
        window_seconds: how long the contender may wait for a batch to fill.
        max_batch: rows of one forward.
    """

    event_shape: tuple[int, ...]
    window_seconds: float
    max_batch: int

    def predict(self, z_t: Float32Array, timesteps: npt.NDArray[np.int64]) -> Float32Array:
        """eps_hat of rows [n, *event_shape]."""
        ...


def served_port() -> int:
    """The loopback port that the contender is to listen on."""
    return int(os.environ[PORT_VARIABLE])


def load_work(text: str | None = None) -> Work:
    """The work that ``text``, by default the environment, describes as JSON."""
    stated: dict[str, Any] = json.loads(os.environ[WORK_VARIABLE] if text is None else text)
    kinds: dict[str, Any] = {
        "simulated": SimulatedDevice,
        "network": Network,
    }
    return kinds[stated.pop("kind")](**stated)


class SimulatedDevice:
    """A device's timing without a device, as the server's simulated teacher: the standard normal's
    eps_hat = sigma(t) z_t, after a sleep for the launch and each row."""

    def __init__(
        self,
        event_shape: Sequence[int],
        launch_seconds: float,
        row_seconds: float,
        max_batch: int,
        window_seconds: float = 0.0,
    ) -> None:
        self.event_shape = tuple(event_shape)
        self.max_batch = max_batch
        self.window_seconds = window_seconds
        self._launch_seconds = launch_seconds
        self._row_seconds = row_seconds
        # Cosine schedule, Nichol and Dhariwal 2021, Eq. 17.
        t = (np.arange(1, TIMESTEPS + 1) / TIMESTEPS + 0.008) / 1.008
        first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        cumulative = np.clip(np.cos(t * math.pi / 2) ** 2, 1e-5, None) / first
        self._sigma = np.sqrt(1.0 - cumulative).astype(np.float32)

    def predict(self, z_t: Float32Array, timesteps: npt.NDArray[np.int64]) -> Float32Array:
        end = time.perf_counter() + self._launch_seconds + len(z_t) * self._row_seconds
        noise = self._sigma[timesteps].reshape(-1, *(1,) * (z_t.ndim - 1)) * z_t
        time.sleep(max(0.0, end - time.perf_counter()))
        return noise


class Network:
    """An unconditional ``UNet2DModel`` that predicts eps, on one thread of the CPU."""

    def __init__(
        self,
        event_shape: Sequence[int],
        folder: str,
        shared_site: str,
        max_batch: int,
        window_seconds: float = 0.0,
    ) -> None:
        self.event_shape = tuple(event_shape)
        self.max_batch = max_batch
        self.window_seconds = window_seconds
        if shared_site not in sys.path:
            sys.path.append(shared_site)  # last: the contender's own packages come first
        import torch
        from diffusers.models.unets.unet_2d import UNet2DModel

        torch.set_num_threads(1)
        self._torch: Any = torch
        self._unet: Any = UNet2DModel.from_pretrained(
            Path(folder) / "unet", use_safetensors=True, low_cpu_mem_usage=False
        )
        self._unet.eval().requires_grad_(False)

    def predict(self, z_t: Float32Array, timesteps: npt.NDArray[np.int64]) -> Float32Array:
        torch = self._torch
        with torch.inference_mode():
            z, t = torch.from_numpy(z_t), torch.from_numpy(timesteps)
            return self._unet(z, t).sample.numpy()


def predict_bytes(work: Work, requests: Sequence[bytes]) -> list[bytes]:
    """Answers to a batch of requests."""
    timesteps = np.array(
        [int.from_bytes(request[:TIMESTEP_BYTES], "little") for request in requests], np.int64
    )
    rows = np.stack(
        [
            np.frombuffer(request, np.float32, offset=TIMESTEP_BYTES).reshape(work.event_shape)
            for request in requests
        ]
    )
    return [row.tobytes() for row in work.predict(rows, timesteps)]
