"""Ports, what encrypts them, and the files behind them."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from carv_server.tenants.reload import Watcher
from carv_server.tls import RotatingCertificates, TlsConfig, read_certificates

__all__ = ["Listeners", "channel_options"]

T = TypeVar("T")

# So far above the limit gRPC itself refuses a message, with no rich status, before it is whole in
# memory; also one that is small and grows as it is decompressed.
_HARD_LIMIT_MARGIN = 1 << 20
_MAX_METADATA_BYTES = 64 * 1024
# An open health Watch holds stop() for its whole grace; other calls have ended by then, or are told
# that the server is draining.
_STOP_SECONDS = 0.5
# Of messages on the health port.
_HEALTH_BYTES = 4096


class Listeners:
    """A server's port, the plaintext port for health alone, and watchers of files.

    Args:
        server: with all its handlers.
        health: the servicer of grpc.health.v1, which both ports share.

    Attributes:
        addresses: host:port of both, once open; "" for a port that is not wanted.
    """

    def __init__(self, server: grpc.aio.Server, health: Any) -> None:
        self._server = server
        self._health = health
        # One that is never started would hold up the end of the process.
        self._health_server: grpc.aio.Server | None = None
        self._watching: list[asyncio.Task[None]] = []
        self.addresses = ("", "")

    def open(self, address: str, health_address: str, tls: TlsConfig | None) -> None:
        """Bind the ports.

        Raises:
            RuntimeError: an address cannot be bound.
            CertificateError: the certificates are no good.
        """
        if tls is None:
            port = self._server.add_insecure_port(address)
        else:
            present = read_certificates(tls)
            certificates = RotatingCertificates(present)
            credentials = certificates.credentials(tls.require_client_certificate)
            port = self._server.add_secure_port(address, credentials)

            def read() -> Any:
                return read_certificates(tls)

            watcher = Watcher("certificates", tls.files, present, read, certificates.take)
            self.watch(watcher, tls.reload_seconds)
        health_bound = ""
        if health_address:
            beside = grpc.aio.server(options=channel_options(_HEALTH_BYTES))
            health_pb2_grpc.add_HealthServicer_to_server(self._health, beside)
            health_bound = _bound(health_address, beside.add_insecure_port(health_address))
            self._health_server = beside
        self.addresses = (_bound(address, port), health_bound)

    def watch(self, watcher: Watcher[T], seconds: float) -> None:
        """Look at a watcher's files every so many seconds, until ``stop``."""
        self._watching.append(asyncio.create_task(watcher.run(seconds)))

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()
        if self._health_server is not None:
            await self._health_server.start()

    async def stop(self) -> None:
        """Take none any more; those in progress are ended within a second."""
        for task in self._watching:
            task.cancel()
        servers = [self._server, *filter(None, [self._health_server])]
        await asyncio.gather(*(server.stop(_STOP_SECONDS) for server in servers))


def _bound(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"


def channel_options(
    max_message_bytes: int, age_seconds: float = 0.0, grace_seconds: float = 0.0
) -> list[tuple[str, int]]:
    """Of a server whose messages have that limit.

    Args:
        age_seconds: after which a connection takes no new calls, and its client connects anew;
            gRPC varies it by a tenth, so that not all come back at once. 0: never.
        grace_seconds: from then until the connection ends with the calls that are still on it.
    """
    hard_limit = max_message_bytes + min(max_message_bytes, _HARD_LIMIT_MARGIN)
    options = [
        ("grpc.max_receive_message_length", hard_limit),
        ("grpc.max_send_message_length", hard_limit),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        # Two servers on one port would share calls silently.
        ("grpc.so_reuseport", 0),
        # Clients may ping an idle connection every 10 s to notice a dead server.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if age_seconds > 0.0:
        options += [
            ("grpc.max_connection_age_ms", round(1000 * age_seconds)),
            ("grpc.max_connection_age_grace_ms", round(1000 * grace_seconds)),
        ]
    return options
