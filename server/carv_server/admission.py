"""What is in flight over all connections, and what is refused for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from carv.errors import FieldViolation, Reason
from carv_server.errors import RequestError

__all__ = ["Admission"]

# Bounds on what waits to be parsed, checked and computed, beside the scheduler's own.
_MAX_REQUESTS = 2048
_MAX_BYTES = 1 << 30
# An open stream costs memory also while nothing is in flight on it.
_MAX_STREAMS = 1024
_BUSY_RETRY_SECONDS = 0.25
# Long enough for a client to have found another server, or this one's successor.
_DRAINING_RETRY_SECONDS = 1.0


class Admission:
    """Counts requests, those of unary calls and those on streams alike. Lives on one event loop.

    Attributes:
        draining: set once no more requests are taken.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._requests = 0
        self._bytes = 0
        self._streams = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = asyncio.Event()

    async def wait_idle(self) -> None:
        """Until no request is in flight."""
        await self._idle.wait()

    def counted(self, size: int) -> _Counted:
        """Around a request of so many bytes, from its arrival until it is answered."""
        return _Counted(self, size)

    def count(self, requests: int, size: int) -> None:
        """So many requests of so many bytes more; see ``counted``."""
        self._requests += requests
        self._bytes += size
        if self._requests == 0:
            self._idle.set()
        else:
            self._idle.clear()

    def check(self, size: int) -> None:
        """Whether to go on with a request that is counted.

        Raises:
            RequestError: DRAINING, MESSAGE_TOO_LARGE or QUEUE_FULL.
        """
        self.check_draining()
        if size > self._max_message_bytes:
            raise RequestError(
                Reason.MESSAGE_TOO_LARGE,
                f"the request holds {size} bytes; the limit is {self._max_message_bytes}: "
                "send fewer renders at once",
                violations=[
                    FieldViolation(
                        "request", f"{size} bytes; the limit is {self._max_message_bytes}"
                    )
                ],
            )
        if self._requests > _MAX_REQUESTS or self._bytes > _MAX_BYTES:
            raise _full(
                f"{self._requests} requests of {self._bytes} bytes are in flight; the limits are "
                f"{_MAX_REQUESTS} and {_MAX_BYTES}"
            )

    def check_draining(self) -> None:
        """Raises RequestError DRAINING once draining."""
        if self.draining.is_set():
            raise RequestError(
                Reason.DRAINING,
                "the server is shutting down; send it elsewhere or later",
                retry_delay_seconds=_DRAINING_RETRY_SECONDS,
            )

    def check_in_flight(self, requests: int, most: int) -> None:
        """Whether a stream with so many requests in flight may take one more.

        Raises:
            RequestError: QUEUE_FULL.
        """
        if requests >= most:
            raise _full(f"{requests} requests are in flight on this stream; the limit is {most}")

    @contextmanager
    def open_stream(self) -> Iterator[None]:
        """Around a stream, whose requests are counted one by one.

        Raises:
            RequestError: DRAINING or QUEUE_FULL.
        """
        self.check_draining()
        if self._streams >= _MAX_STREAMS:
            raise _full(f"{self._streams} streams are open; the limit is {_MAX_STREAMS}")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _full(message: str) -> RequestError:
    return RequestError(Reason.QUEUE_FULL, message, retry_delay_seconds=_BUSY_RETRY_SECONDS)


class _Counted:
    """A class, since every request comes by: a generator takes four times as long."""

    __slots__ = ("_admission", "_size")

    def __init__(self, admission: Admission, size: int) -> None:
        self._admission = admission
        self._size = size

    def __enter__(self) -> None:
        self._admission.count(1, self._size)

    def __exit__(self, *raised: object) -> None:
        self._admission.count(-1, -self._size)
