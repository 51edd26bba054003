"""From the event loop into a thread and back, once for every microbatch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

__all__ = ["hand_over"]

T = TypeVar("T")


def hand_over(executor: Executor, function: Callable[[], T]) -> asyncio.Future[T]:
    """What ``function`` returns or raises, from the executor; or why that takes no more work.

    As ``loop.run_in_executor``, for half the event loop's time: there is one future in place of
    two that follow each other. So a function whose future is cancelled still has its turn.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    try:
        executor.submit(_HandedOver(loop, future, function).run)
    except RuntimeError as refused:  # it is shut down, or the system has no thread for it
        future.set_exception(refused.with_traceback(None))
    return future


class _HandedOver(Generic[T]):
    """A function on its way, and where its result belongs.

    An error's trace holds the frames that it came through, and through them those that called
    them: what leads from here to the future is cut once it is settled, or an error would keep
    itself alive, and with it all that the forward's frames hold.
    """

    __slots__ = ("_content",)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[T],
        function: Callable[[], T],
    ) -> None:
        self._content: Any = loop, future, function

    def run(self) -> None:
        loop, future, function = self._content
        self._content = None
        result, error = None, None
        try:
            result = function()
        except StopIteration as raised:  # which no future takes
            error = RuntimeError(f"StopIteration was raised: {raised}")
        except BaseException as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        try:
            # Of a loop that is closed by now: into the executor's future, where nobody looks.
            loop.call_soon_threadsafe(_settle, future, result, error)
        finally:
            del future, function, result, error


def _settle(future: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if future.done():  # cancelled
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # pyright: ignore[reportArgumentType]
