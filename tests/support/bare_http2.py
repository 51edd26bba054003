"""gRPC over HTTP/2 by hand, for what no gRPC client sends."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterable

import h2.config
import h2.connection
import h2.events

__all__ = ["bomb", "post"]

_SECONDS = 30.0


def bomb(mebibytes: int) -> bytes:
    """So many MiB of zeros, as gzip compresses them to a thousandth."""
    compress = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    return b"".join(compress.compress(zeros) for _ in range(mebibytes)) + compress.flush()


def post(
    address: str,
    path: str,
    message: bytes,
    *,
    compressed: bool = False,
    headers: Iterable[tuple[str, str]] = (),
) -> dict[str, str]:
    """Send one message to a method; headers and trailers of the answer, or ``reset`` where the
    server ended the stream otherwise.

    Raises:
        ConnectionError: the server closed the connection.
    """
    body = struct.pack(">?I", compressed, len(message)) + message
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), _SECONDS) as wire:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        connection.initiate_connection()
        begin = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *headers,
        ]
        connection.send_headers(1, begin)
        found: dict[str, str] = {}
        sent = 0
        while True:
            room = min(connection.local_flow_control_window(1), connection.max_outbound_frame_size)
            if sent < len(body) and room:
                piece = body[sent : sent + room]
                sent += len(piece)
                connection.send_data(1, piece, end_stream=sent == len(body))
                wire.sendall(connection.data_to_send())
                continue
            wire.sendall(connection.data_to_send())
            data = wire.recv(1 << 16)
            if not data:
                raise ConnectionError("the server closed the connection")
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found |= {k.decode(): v.decode() for k, v in event.headers or ()}
                elif isinstance(event, h2.events.DataReceived):
                    size = event.flow_controlled_length or 0
                    connection.acknowledge_received_data(size, 1)
                elif isinstance(event, h2.events.StreamReset):
                    return found | {"reset": str(event.error_code)}
                elif isinstance(event, h2.events.StreamEnded):
                    return found
