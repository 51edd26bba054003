"""One event loop in a background thread, for all blocking clients of a process.

gRPC's asyncio wants one event loop for each process. The thread is a daemon, stopped and drained
at exit.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from carv_client._client import AsyncTeacherClient
from carv_client._errors import ClientClosedError

__all__ = ["FORKED", "LoopThread", "loop_thread"]

T = TypeVar("T")

_EXIT_SECONDS = 5.0


class LoopThread:
    """An event loop in a daemon thread, and the clients that are open on it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.clients: weakref.WeakSet[AsyncTeacherClient] = weakref.WeakSet()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_quiet_pollers)
        self._thread = threading.Thread(target=self._main, name="carv-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, from any thread. An interrupt cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a blocking call inside the client's own event loop")
        future = self.start(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosedError("the client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the background. Cancelling the future cancels it."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed: the interpreter is exiting
            work.close()
            raise ClientClosedError("the interpreter is shutting down") from None

    def discard(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Close what was dropped without ``close``; does not wait."""
        if os.getpid() != self.pid or self._loop.is_closed():
            return

        def start() -> None:
            task = self._loop.create_task(close())
            self._discarded.add(task)
            task.add_done_callback(self._discarded.discard)

        self._loop.call_soon_threadsafe(start)

    def _main(self) -> None:
        self._discarded: set[asyncio.Task[None]] = set()
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._drain())
            self._loop.close()

    async def _drain(self) -> None:
        for client in list(self.clients):
            await client.close()
        rest = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    def _stop(self) -> None:
        if os.getpid() == self.pid and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_EXIT_SECONDS)


def _quiet_pollers(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """gRPC's pollers race for one descriptor where a process runs a second event loop (a server,
    say); the loser's BlockingIOError means nothing (grpc/grpc issue 25364)."""
    handle = str(context.get("handle", ""))
    if isinstance(context.get("exception"), BlockingIOError) and "_handle_events" in handle:
        return
    loop.default_exception_handler(context)


_lock = threading.Lock()
_thread: LoopThread | None = None


def loop_thread() -> LoopThread:
    global _thread
    with _lock:
        if _thread is None:
            _thread = LoopThread()
        if _thread.pid != os.getpid():
            raise ClientClosedError(FORKED)
        return _thread


FORKED = (
    "this process was forked after a TeacherClient was opened, and gRPC does not survive a fork; "
    'start workers with the "spawn" method'
)
