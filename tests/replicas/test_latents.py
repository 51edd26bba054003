"""Latents go into shared memory once for a request, and leave it with the request."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from carv_server.replicas.ray_latents import SharedLatents

LARGE = (4, 4, 64, 64)  # 256 KiB


def _latents() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(LARGE).astype(np.float32)


class _Memory:
    """Shared memory that counts: a reference is an object that is gone when nobody holds it."""

    def __init__(self) -> None:
        self.puts: list[np.ndarray] = []
        self.gate = threading.Event()
        self.gate.set()
        self.full = False

    def put(self, array: np.ndarray) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        assert self.gate.wait(10)
        if self.full:
            raise MemoryError("full")
        self.puts.append(array.copy())
        return object()


def _run(scenario: Callable[[SharedLatents, _Memory], Any]) -> None:
    memory = _Memory()
    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(SharedLatents(memory.put, executor), memory))


def test_one_place_for_all_microbatches_and_replicas_until_they_are_gone() -> None:
    async def scenario(store: SharedLatents, memory: _Memory) -> None:
        x, y = _latents(), _latents()
        memory.gate.clear()
        calls = [asyncio.create_task(store.references([x, y])) for _ in range(3)]
        calls += [asyncio.create_task(store.references([x]))]
        await asyncio.sleep(0)
        memory.gate.set()
        first, *others = await asyncio.gather(*calls)
        assert all(a is b for other in others for a, b in zip(other, first, strict=False))
        assert [put.tobytes() for put in memory.puts] == [x.tobytes(), y.tobytes()]
        del x
        gc.collect()
        assert len(store) == 1, "x's place is free, y's is not"

    _run(scenario)


def test_small_latents_go_along_with_each_call() -> None:
    async def scenario(store: SharedLatents, memory: _Memory) -> None:
        (array,) = await store.references([np.ones((1, 4, 64, 64), np.float32)])  # 64 KiB
        assert isinstance(array, np.ndarray) and array.sum() == 4 * 64 * 64
        assert memory.puts == [] and len(store) == 0

    _run(scenario)


def test_a_caller_that_leaves_does_not_take_the_place_along() -> None:
    async def scenario(store: SharedLatents, memory: _Memory) -> None:
        x = _latents()
        memory.gate.clear()
        leaves = asyncio.create_task(store.references([x]))
        stays = asyncio.create_task(store.references([x]))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.sleep(0)
        memory.gate.set()
        (reference,) = await stays
        assert (await store.references([x]))[0] is reference
        assert len(memory.puts) == 1

    _run(scenario)


def test_memory_that_was_full_is_tried_again() -> None:
    async def scenario(store: SharedLatents, memory: _Memory) -> None:
        x = _latents()
        memory.full = True
        with pytest.raises(MemoryError, match="full"):
            await store.references([x])
        memory.full = False
        await store.references([x])
        assert len(memory.puts) == 1 == len(store)

    _run(scenario)
