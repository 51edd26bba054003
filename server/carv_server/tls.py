"""Server certificates that rotate while the server runs."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import grpc

__all__ = [
    "CertificateError",
    "Certificates",
    "RotatingCertificates",
    "TlsConfig",
    "read_certificates",
]


class CertificateError(ValueError):
    """Certificates that cannot be used; the message names the files.

    Attributes:
        field: of ``TlsConfig``, whose file is at fault.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class TlsConfig:
    """Where certificates are.

    Attributes:
        certificate: PEM chain of the server, its own first.
        private_key: its PEM key.
        client_ca: PEM authorities that clients' certificates are checked against.
        require_client_certificate: refuse connections without one.
        reload_seconds: within this time a change of the files is taken.
    """

    certificate: Path
    private_key: Path
    client_ca: Path | None = None
    require_client_certificate: bool = False
    reload_seconds: float = 10.0

    @property
    def files(self) -> tuple[Path, ...]:
        own = (self.certificate, self.private_key)
        return own if self.client_ca is None else (*own, self.client_ca)


@dataclass(frozen=True)
class Certificates:
    """PEM, in memory."""

    certificate: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None = None


def read_certificates(config: TlsConfig) -> Certificates:
    """A pair that goes together, and authorities that parse. Text around the PEM is no matter.

    Raises:
        CertificateError: a file cannot be read or is half written, or the key is another
            certificate's.
    """
    found = _read(config)
    # OpenSSL reads the files by itself; what it finds good must be what was read above.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.certificate, config.private_key, password="")
    except (OSError, ValueError) as error:
        raise CertificateError(
            "certificate",
            f"{config.certificate} and {config.private_key} do not go together: {error}",
        ) from None
    if config.client_ca is not None:
        _check_authorities(config.client_ca)
    if _read(config) != found:
        raise CertificateError("certificate", f"{config.certificate}: written while it was read")
    return found


def _check_authorities(file: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(file)
    except (OSError, ValueError) as error:
        raise CertificateError("client_ca", f"{file} holds no certificates: {error}") from None
    if not context.cert_store_stats()["x509"]:
        raise CertificateError("client_ca", f"{file} holds no certificates")


def _read(config: TlsConfig) -> Certificates:
    certificate = _bytes_of("certificate", config.certificate)
    private_key = _bytes_of("private_key", config.private_key)
    authorities = None
    if config.client_ca is not None:
        authorities = _bytes_of("client_ca", config.client_ca)
    return Certificates(certificate, private_key, authorities)


def _bytes_of(field: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateError(field, f"{file} cannot be read: {error.strerror}") from None


# A client that resumes a TLS session shows no certificate: one that has expired meanwhile would go
# on for days. Under another configuration no session is resumed, also where its certificates are
# the same.
_SESSION_SECONDS = 60.0


class RotatingCertificates:
    """Certificates for new connections; those that are open keep theirs. TLS sessions are resumed
    for a minute at most."""

    def __init__(self, present: Certificates, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._present = present
        self._since = clock()

    def take(self, certificates: Certificates) -> None:
        """Have the next connections use these."""
        self._present = certificates
        self._since = -math.inf

    def credentials(self, require_client_certificate: bool) -> grpc.ServerCredentials:
        """For one listener."""
        # The stubs know nothing of None.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._present), fetch, require_client_certificate
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake, in a thread of its own; None: no change."""
        now = self._clock()
        if now - self._since < _SESSION_SECONDS:
            return None
        # Ahead of the certificates: what is taken in between is given to the next.
        self._since = now
        return _configuration(self._present)


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.private_key, certificates.certificate)], certificates.client_ca
    )
