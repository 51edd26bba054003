"""The blocking client: a thin facade over ``AsyncTeacherClient``.

gRPC's asyncio wants one event loop for each process, so all blocking clients of a process
share one background thread that runs one. It is a daemon, stopped and drained at exit.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from carv_client._client import AsyncTeacherClient
from carv_client._config import DEFAULT_ADDRESS, ClientConfig
from carv_client._errors import ClientClosedError
from carv_client.planner import DrawPlanner

__all__ = ["ReplyIterator", "TeacherClient"]

P = ParamSpec("P")
T = TypeVar("T")

_EXIT_SECONDS = 5.0


class _LoopThread:
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
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed: the interpreter is exiting
            work.close()
            raise ClientClosedError("the interpreter is shutting down") from None
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosedError("the client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

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
_thread: _LoopThread | None = None


def _loop_thread() -> _LoopThread:
    global _thread
    with _lock:
        if _thread is None:
            _thread = _LoopThread()
        if _thread.pid != os.getpid():
            raise ClientClosedError(_FORKED)
        return _thread


_FORKED = (
    "this process was forked after a TeacherClient was opened, and gRPC does not survive a fork; "
    'start workers with the "spawn" method'
)


def _blocking(
    method: Callable[Concatenate[AsyncTeacherClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[TeacherClient, P], T]:
    """The same method, blocking, with the same signature and documentation."""

    @functools.wraps(method)
    def call(self: TeacherClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return call


def _streaming(
    method: Callable[Concatenate[AsyncTeacherClient, P], AsyncGenerator[T]],
) -> Callable[Concatenate[TeacherClient, P], ReplyIterator[T]]:
    """The same method as a blocking iterator, with the same signature and documentation."""

    @functools.wraps(method)
    def call(self: TeacherClient, /, *args: P.args, **kwargs: P.kwargs) -> ReplyIterator[T]:
        return self._iterate(method, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return call


class ReplyIterator(Iterator[T]):
    """The replies of a stream, each waited for in the thread that asks for it.

    ``close``, the end of a ``with`` block, or letting go of the iterator ends the call on the
    server too. One thread at a time may ask.
    """

    def __init__(
        self, client: TeacherClient, thread: _LoopThread, replies: AsyncGenerator[T]
    ) -> None:
        self._client = client  # kept open while its stream is in use
        self._thread = thread
        self._replies = replies
        self._finalizer = weakref.finalize(self, thread.discard, lambda: _aclose(replies))
        self._finalizer.atexit = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if os.getpid() != self._thread.pid:
            raise ClientClosedError(_FORKED)
        found = self._thread.run(_next(self._replies))
        if not found:
            self._finalizer.detach()
            raise StopIteration
        return found[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the call; nothing comes after. May be repeated."""
        if self._finalizer.detach() is not None and os.getpid() == self._thread.pid:
            self._thread.run(_aclose(self._replies))


async def _next(replies: AsyncGenerator[T]) -> tuple[T] | tuple[()]:
    async for reply in replies:
        return (reply,)
    return ()


async def _aclose(replies: AsyncGenerator[Any]) -> None:
    await replies.aclose()


class TeacherClient:
    """A client of one CARV server, for blocking code; safe to share between threads.

        with TeacherClient("localhost:50051") as client:
            conditioning = client.create_conditioning("a red torus")
            estimate = client.estimate_gradient(latents, conditioning, draws=8, seed=0)

    Args, errors and methods are those of ``AsyncTeacherClient``. Does not survive a fork.
    """

    def __init__(
        self,
        target: str | ClientConfig = DEFAULT_ADDRESS,
        *,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self._client = AsyncTeacherClient(target, jitter=jitter)
        self._thread = _loop_thread()
        self._thread.clients.add(self._client)
        self._closed = False
        self._finalizer = weakref.finalize(self, self._thread.discard, self._client.close)
        self._finalizer.atexit = False

    @property
    def config(self) -> ClientConfig:
        """The configuration that the client was opened with."""
        return self._client.config

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls in flight in other threads end with ClientClosedError."""
        self._closed = True
        if self._finalizer.detach() is not None and os.getpid() == self._thread.pid:
            self._thread.run(self._client.close())

    def _run(
        self,
        method: Callable[Concatenate[AsyncTeacherClient, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._check_open()
        return self._thread.run(method(self._client, *args, **kwargs))

    def _iterate(
        self,
        method: Callable[Concatenate[AsyncTeacherClient, P], AsyncGenerator[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> ReplyIterator[T]:
        self._check_open()
        return ReplyIterator(self, self._thread, method(self._client, *args, **kwargs))

    def _check_open(self) -> None:
        if os.getpid() != self._thread.pid:
            raise ClientClosedError(_FORKED)
        if self._closed:
            raise ClientClosedError("the client is closed")

    def planner(self, teacher: str | None = None) -> DrawPlanner:
        """The planner of ``draws="auto"`` for a teacher, where the call brings none of its own."""
        return self._client.planner(teacher)

    list_teachers = _blocking(AsyncTeacherClient.list_teachers)
    get_teacher = _blocking(AsyncTeacherClient.get_teacher)
    create_conditioning = _blocking(AsyncTeacherClient.create_conditioning)
    estimate_gradient = _blocking(AsyncTeacherClient.estimate_gradient)
    predict_noise = _blocking(AsyncTeacherClient.predict_noise)
    refine_gradient = _streaming(AsyncTeacherClient.refine_gradient)
    profile_teacher = _blocking(AsyncTeacherClient.profile_teacher)
