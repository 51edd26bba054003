"""One request over a connection of its own, from bytes prepared beforehand, for as little of the
client's processor time as Python allows: the client shares the machine with what it measures.

gRPC calls are raw (no message is built or parsed); HTTP is 1.1 with keep-alive over a bare socket,
which costs the client about half of what gRPC does.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from carv.v1 import teacher_service_pb2 as pb

__all__ = ["CallFailed", "Caller", "Target", "call_once", "connect"]

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_CONNECT_SECONDS = 10.0
# What a status may hold is less; what is longer is an answer, and need not be parsed.
_LARGEST_ERROR_BYTES = 16 * 1024
_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class CallFailed(Exception):
    """The server answered with an error, or not at all; the message says which."""


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        protocol: "grpc"; "grpc-stream", a call that stays open, StreamGradients's or one whose
            answers are as large; or "http".
        address: host:port.
        path: the gRPC method as /package.Service/Method, or the HTTP path to POST to.
        content_type: of an HTTP request's body.
    """

    protocol: str
    address: str
    path: str
    content_type: str = "application/octet-stream"


class Caller(Protocol):
    """A client with a connection of its own, one request at a time."""

    async def call(self, payload: bytes) -> bytes:
        """The reply's bytes.

        Raises:
            CallFailed: it failed.
        """
        ...

    async def close(self) -> None: ...


async def connect(target: Target) -> Caller:
    """Raises CallFailed where nothing listens."""
    if target.protocol == "grpc":
        return _GrpcCaller(target)
    if target.protocol == "grpc-stream":
        return _StreamCaller(target)
    if target.protocol == "http":
        host, _, port = target.address.rpartition(":")
        opening = asyncio.open_connection(host, int(port), limit=_MAX_MESSAGE_BYTES)
        try:
            reader, writer = await asyncio.wait_for(opening, _CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from None
        return _HttpCaller(target, reader, writer)
    raise ValueError(f"unknown protocol {target.protocol!r}")


async def call_once(target: Target, payload: bytes, seconds: float) -> bytes:
    """One request on a fresh connection.

    Raises:
        CallFailed: it failed, or took longer than ``seconds``.
    """
    caller = await connect(target)
    try:
        return await asyncio.wait_for(caller.call(payload), seconds)
    except TimeoutError:
        raise CallFailed(f"no answer within {seconds:g} s") from None
    finally:
        await caller.close()


def _channel(target: Target) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # else clients would share one connection
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ]
    return grpc.aio.insecure_channel(target.address, options=options)


class _GrpcCaller:
    def __init__(self, target: Target) -> None:
        self._channel = _channel(target)
        self._call: Any = self._channel.unary_unary(target.path)

    async def call(self, payload: bytes) -> bytes:
        try:
            return await self._call(payload)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(f"{error.code().name}: {error.details()}") from None

    async def close(self) -> None:
        await self._channel.close()


class _StreamCaller:
    """One request after another on one call, all by the same id: it is free again once its request
    is answered."""

    def __init__(self, target: Target) -> None:
        self._channel = _channel(target)
        self._open: Any = self._channel.stream_stream(target.path)
        self._stream: Any = None

    async def call(self, payload: bytes) -> bytes:
        if self._stream is None:
            self._stream = self._open()
        try:
            await self._stream.write(payload)
            reply = await self._stream.read()
            if not isinstance(reply, bytes):  # grpc.aio.EOF
                self._stream = None
                raise CallFailed("the server ended the stream")
        except grpc.aio.AioRpcError as error:
            self._stream = None
            raise CallFailed(f"{error.code().name}: {error.details()}") from None
        if len(reply) > _LARGEST_ERROR_BYTES:
            return reply
        answer = pb.StreamGradientsResponse.FromString(reply)
        if answer.HasField("error"):
            raise CallFailed(f"{_NAMES[answer.error.code]}: {answer.error.message}")
        return reply

    async def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        await self._channel.close()


class _HttpCaller:
    def __init__(
        self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer = reader, writer
        self._head = (
            f"POST {target.path} HTTP/1.1\r\nHost: {target.address}\r\n"
            f"Content-Type: {target.content_type}\r\nContent-Length: %d\r\n\r\n"
        )

    async def call(self, payload: bytes) -> bytes:
        self._writer.write((self._head % len(payload)).encode("ascii"))
        self._writer.write(payload)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            body = await self._reader.readexactly(_content_length(head))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from None
        status = head.split(b" ", 2)[1]
        if status != b"200":
            raise CallFailed(f"HTTP {status.decode('ascii', 'replace')}: {body[:200]!r}")
        return body

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the server may have closed it first
            await self._writer.wait_closed()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise CallFailed(f"the answer states no length: {head[:200]!r}")
