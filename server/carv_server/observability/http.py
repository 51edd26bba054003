"""A few read-only pages over plain HTTP/1.1, on the server's own event loop.

GET and HEAD, one request a connection, everything bounded: size of the head, time to send it and
to take the answer, connections at once. What a probe or a scraper needs, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["HttpServer", "ListenError", "Page", "Reply"]

_log = logging.getLogger(__name__)

_MOST_HEAD_BYTES = 8192
_READ_SECONDS = 5.0
_WRITE_SECONDS = 10.0
_MOST_CONNECTIONS = 32
_REASONS = {
    200: "OK",
    302: "Found",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_TEXT = "text/plain; charset=utf-8"


class ListenError(RuntimeError):
    """The address cannot be bound."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    content_type: str = _TEXT
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Page = Callable[[str], Reply]
"""From the request's Accept header ("" for none) to the answer."""


class HttpServer:
    """Serves pages by path; an async context manager.

    Args:
        address: host:port; port 0 takes a free one.

    Attributes:
        address: the one in use, once entered.
    """

    def __init__(self, address: str, pages: Mapping[str, Page]) -> None:
        self.address = address
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises ListenError."""
        host, _, port = self.address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            self._server = await asyncio.start_server(
                self._connected, host, int(port), limit=_MOST_HEAD_BYTES
            )
        except OSError as error:
            raise ListenError(
                f"the metrics address {self.address} cannot be bound: {error.strerror or error}"
            ) from None
        bound = self._server.sockets[0].getsockname()[1]
        self.address = f"{self.address.rpartition(':')[0]}:{bound}"

    async def stop(self) -> None:
        """Close what is open."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                method, reply = await self._reply(reader)
                async with asyncio.timeout(_WRITE_SECONDS):
                    writer.write(_encoded(reply, with_body=method != "HEAD"))
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(_WRITE_SECONDS):
                    await writer.wait_closed()

    async def _reply(self, reader: asyncio.StreamReader) -> tuple[str, Reply]:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return "", _said(431, "the head is too large")
        except TimeoutError:
            return "", _said(408, "no request came")
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return "", _said(400, "not an HTTP/1.1 request")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return method, Reply(405, b"read only\n", headers={"Allow": "GET, HEAD"})
        page = self._pages.get(target.partition("?")[0])
        if page is None:
            return method, _said(404, f"pages: {', '.join(sorted(self._pages))}")
        try:
            return method, page(_header(lines[1:], "accept"))
        except Exception:  # noqa: BLE001 - to the log; the server serves on
            _log.exception("a page failed")
            return method, _said(500, "a defect of the server; its log has the trace")


def _said(status: int, text: str) -> Reply:
    return Reply(status, text.encode() + b"\n")


def _header(lines: list[str], name: str) -> str:
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def _encoded(reply: Reply, *, with_body: bool) -> bytes:
    headers = {
        "Content-Type": reply.content_type,
        "Content-Length": str(len(reply.body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **reply.headers,
    }
    lines = [f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1") + (reply.body if with_body else b"")
