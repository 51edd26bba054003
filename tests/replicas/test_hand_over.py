"""From the event loop into a thread and back."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from carv_server.replicas.hand_over import hand_over


def test_it_runs_in_the_executor_and_gives_back_what_it_returns_or_raises() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def scenario() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="there") as executor:
            name = await hand_over(executor, lambda: threading.current_thread().name)
            assert name.startswith("there")
            with pytest.raises(ValueError, match="no"):
                await hand_over(executor, fail)

    asyncio.run(scenario())


def test_one_who_cancels_is_free_at_once_and_the_function_has_its_turn() -> None:
    async def scenario() -> None:
        gate, ran = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as executor:
            blocked = hand_over(executor, lambda: gate.wait(10))
            cancelled = hand_over(executor, ran.set)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert not ran.is_set()
            gate.set()
            assert await blocked
        assert ran.is_set()

    asyncio.run(scenario())


def test_what_takes_no_more_work_says_so_in_the_future() -> None:
    async def scenario() -> None:
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        refused = hand_over(executor, lambda: 1)
        with pytest.raises(RuntimeError, match="after shutdown"):
            await refused

    asyncio.run(scenario())
