"""The blocking client: a thin facade over ``AsyncTeacherClient``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from carv_client._client import AsyncTeacherClient
from carv_client._config import DEFAULT_ADDRESS, ClientConfig
from carv_client._errors import ClientClosedError
from carv_client._loop_thread import FORKED, LoopThread, loop_thread
from carv_client.planner import DrawPlanner

__all__ = ["ReplyIterator", "TeacherClient"]

P = ParamSpec("P")
T = TypeVar("T")


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


def _submitting(
    method: Callable[Concatenate[AsyncTeacherClient, P], Coroutine[Any, Any, asyncio.Future[T]]],
) -> Callable[Concatenate[TeacherClient, P], concurrent.futures.Future[T]]:
    """The same method, with a future for threads, and the same signature and documentation."""

    @functools.wraps(method)
    def call(self: TeacherClient, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._submit(method, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return call


class ReplyIterator(Iterator[T]):
    """The replies of a stream, each waited for in the thread that asks for it.

    ``close``, the end of a ``with`` block, or letting go of the iterator ends the call on the
    server too. One thread at a time may ask.
    """

    def __init__(
        self, client: TeacherClient, thread: LoopThread, replies: AsyncGenerator[T]
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
            raise ClientClosedError(FORKED)
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


async def _wait_for(coming: asyncio.Future[T], client: TeacherClient) -> T:
    """``client`` stays open for what is in flight, whoever lets go of it."""
    return await coming


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
        token: str | None = None,
        root_certificates: bytes | None = None,
        private_key: bytes | None = None,
        certificate_chain: bytes | None = None,
        jitter: Callable[[], float] | None = None,
        new_seed: Callable[[], int] | None = None,
    ) -> None:
        self._client = AsyncTeacherClient(
            target,
            token=token,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            jitter=jitter,
            new_seed=new_seed,
        )
        self._thread = loop_thread()
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

    def _submit(
        self,
        method: Callable[
            Concatenate[AsyncTeacherClient, P], Coroutine[Any, Any, asyncio.Future[T]]
        ],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> concurrent.futures.Future[T]:
        self._check_open()
        return self._thread.start(_wait_for(self._run(method, *args, **kwargs), self))

    def _check_open(self) -> None:
        if os.getpid() != self._thread.pid:
            raise ClientClosedError(FORKED)
        if self._closed:
            raise ClientClosedError("the client is closed")

    def planner(self, teacher: str | None = None) -> DrawPlanner:
        """The planner of ``draws="auto"`` for a teacher, where the call brings none of its own."""
        return self._client.planner(teacher)

    list_teachers = _blocking(AsyncTeacherClient.list_teachers)
    get_teacher = _blocking(AsyncTeacherClient.get_teacher)
    create_conditioning = _blocking(AsyncTeacherClient.create_conditioning)
    estimate_gradient = _blocking(AsyncTeacherClient.estimate_gradient)
    submit = _submitting(AsyncTeacherClient.submit)
    keep_latents = _blocking(AsyncTeacherClient.keep_latents)
    predict_noise = _blocking(AsyncTeacherClient.predict_noise)
    refine_gradient = _streaming(AsyncTeacherClient.refine_gradient)
    profile_teacher = _blocking(AsyncTeacherClient.profile_teacher)
