"""Latents that clients send once and ask about again: kept by handles of their content."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from carv.tensors import dtype_name
from carv.v1 import tensor_pb2
from carv_server.store import ExpiringStore, StoreConfig, StoreCounts, content_handle

__all__ = ["DEFAULT_LATENT_STORE", "LatentStore", "latents_handle"]

Float32Array = npt.NDArray[np.float32]

DEFAULT_LATENT_STORE = StoreConfig(max_entries=1024, max_bytes=256 << 20, seconds_to_live=600.0)
"""Latents are larger than conditionings and cheaper to make again: fewer, and for less long."""


class LatentStore:
    """The latents kept for one teacher; safe to use from several threads.

    Args:
        clock: wall-clock seconds, as clients are told them.
    """

    def __init__(self, config: StoreConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self._store = ExpiringStore[str, Float32Array](config, clock)

    def get(self, handle: str, tenant: str = "") -> Float32Array | None:
        """Float32 [R, *event_shape], read-only, its life extended; None where the handle is
        unknown, of another tenant, or has expired."""
        return self._store.get(handle, tenant)

    def put(self, handle: str, latents: Float32Array, tenant: str = "") -> float:
        """Keep float32 [R, *event_shape]; the wall-clock second at which it expires if not
        used."""
        return self._store.put(handle, latents, latents.nbytes, tenant)

    def counts(self) -> StoreCounts:
        return self._store.counts()


def latents_handle(teacher_digest: str, message: tensor_pb2.Tensor) -> str:
    """Handle of latents as they were sent: SHA-256 over teacher, dtype, shape and bytes."""
    shape = str(tuple(message.shape)).encode()
    dtype = dtype_name(message.dtype).encode()
    return content_handle(teacher_digest, "latents", dtype, shape, message.data)
