"""Latents in Ray's shared memory: put there once, read by every microbatch that needs them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SharedLatents"]

Float32Array = npt.NDArray[np.float32]

# Below it, a copy in every call costs less than a place in shared memory and a look-up.
_INLINE_BYTES = 64 * 1024


class SharedLatents:
    """Stands a reference in for latents, for as long as the array lives.

    A request's works share one array, so that its latents cross once for all its microbatches
    and all replicas, and are freed with the request. Used on one event loop.

    Args:
        put: copies an array into shared memory and returns a reference to it (``ray.put``).
        executor: where that happens: it takes milliseconds, and waits while the memory is full.
    """

    def __init__(self, put: Callable[[Float32Array], Any], executor: Executor) -> None:
        self._put = put
        self._executor = executor
        self._kept: dict[int, tuple[weakref.ref[Float32Array], asyncio.Future[Any]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def references(self, latents: Sequence[Float32Array]) -> list[Any]:
        """For each, a reference, or the array itself where it is small.

        Raises:
            Exception: whatever ``put`` raises; it is tried again the next time.
        """
        return [await self._reference(array) for array in latents]

    async def _reference(self, array: Float32Array) -> Any:
        if array.nbytes <= _INLINE_BYTES:
            return array
        key = id(array)
        kept = self._kept.get(key)
        if kept is None:
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._executor, self._put, array)
            forget = weakref.ref(array, lambda _: self._kept.pop(key, None))
            kept = self._kept[key] = (forget, future)
        try:
            # One caller that leaves must not take the reference from the others.
            return await asyncio.shield(kept[1])
        except Exception:
            self._kept.pop(key, None)
            raise
