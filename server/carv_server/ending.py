"""How the process ends where there is nothing to finish, or where a thread will not.

A process that is PID 1 of a container has no default action for SIGTERM: without a handler it
would go on loading until it is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["ended_by_signals", "leave", "on_sigterm", "shut_down", "signals_heard"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_signals_heard: list[int] = []


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT inside end the process at once with exit code 0, whatever a library's C
    code is busy with, as long as it lets go of the interpreter. Until the server, which drains,
    takes the signals over: asyncio's handlers come before these.

    Does nothing in any but the main thread, which alone may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals_heard.clear()
    ours, wakes = socket.socketpair()
    wakes.setblocking(False)
    before = {number: signal.signal(number, _heard) for number in _SIGNALS}
    woken_before = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(ours,), name="signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        wakes.close()  # and so the watch ends
        watch.join()
        ours.close()
        _signals_heard.clear()


@contextmanager
def on_sigterm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The handler inside, and the one before it afterwards."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        if before is not None:  # else a library set it, and only that can do so again
            signal.signal(signal.SIGTERM, before)


def _heard(number: int, frame: FrameType | None) -> None:
    """The main thread hears of a signal only between two steps of Python; ``_watch`` acts, as long
    as no event loop has taken over what wakes it."""
    _signals_heard.append(number)


def signals_heard() -> list[int]:
    """Those that came inside ``ended_by_signals``: for a server to act on that has just taken the
    signals over, since an event loop drops what comes ahead of its own handlers."""
    return list(_signals_heard)


def _watch(ours: socket.socket) -> None:
    for number in iter(lambda: ours.recv(1), b""):
        if number[0] in _SIGNALS:
            logging.getLogger(__name__).info(
                "%s before the server was ready: stopping", signal.Signals(number[0]).name
            )
            leave(0)


def leave(code: int) -> None:
    """End the process now, without waiting for any thread."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def shut_down(executors: Sequence[ThreadPoolExecutor], seconds: float) -> bool:
    """Shut executors down, and drop what waits in them; whether all their threads have ended
    within so many seconds."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wait() -> None:
        for executor in executors:
            executor.shutdown(wait=True, cancel_futures=True)
        with suppress(RuntimeError):  # the loop has not waited so long
            loop.call_soon_threadsafe(ended.set)

    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)
    threading.Thread(target=wait, name="shutdown", daemon=True).start()
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return False
    return True
