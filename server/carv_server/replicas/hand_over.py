"""From the event loop into a thread and back, once for every microbatch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

__all__ = ["hand_over"]

T = TypeVar("T")


def hand_over(executor: Executor, function: Callable[[], T]) -> asyncio.Future[T]:
    """What ``function`` returns or raises, from the executor. As ``loop.run_in_executor``, but for
    half the event loop's time: there is one future in place of two that follow each other, so that
    one who cancels it is free at once, and the function still has its turn."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        try:
            result, error = function(), None
        except BaseException as raised:  # noqa: BLE001 - it is the caller's
            result, error = None, raised
        # A loop that is closed by now takes nothing, and nobody is left who could want to know.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    executor.submit(run)
    return future
