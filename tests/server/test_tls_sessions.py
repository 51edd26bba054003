"""TLS sessions: who resumes one shows no certificate, so it must not outlive the certificate."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from datetime import timedelta
from pathlib import Path

import pytest

from carv_server.tenants.tenant import Tenant
from carv_server.tls import TlsConfig
from tests.server.teachers import oracle_teacher
from tests.support.certificates import Authority
from tests.support.tenants import serving

NAME = "spiffe://carv.test/a"
LASTING = 4.5
# The beginning of HTTP/2, with empty settings; a server that has let one in answers with its own.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def _connect(
    context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket | None:
    """A connection on which the server has answered; None where it refuses."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        found = context.wrap_socket(plain, server_hostname="localhost", session=session)
        found.sendall(PREFACE)
        if found.recv(100):
            return found
        found.close()
    except OSError:
        plain.close()
    return None


def _resumed(context: ssl.SSLContext, port: int) -> ssl.SSLSession:
    """A session that the server resumes, if need be after its configuration was made anew."""
    for _ in range(20):
        first = _connect(context, port)
        assert first is not None
        with first:
            again = _connect(context, port, first.session)
        assert again is not None
        with again:
            if again.session_reused and again.session is not None:
                return again.session
    raise AssertionError("no session is ever resumed: no test")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_does_not_outlive_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    """Breaks with: a configuration that is made anew only when files change."""
    monkeypatch.setattr("carv_server.tls._SESSION_SECONDS", 1.0)
    authority = Authority("ca")
    certificate, key = authority.server().write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])

    async def scenario() -> None:
        async with serving(
            {"mixture": oracle_teacher()},
            [Tenant("a", spiffe_ids=(NAME,))],
            tls=TlsConfig(certificate, key, tmp_path / "ca.pem", True),
        ) as server:
            port = int(server.address.rpartition(":")[2])
            authority.client(NAME, lasting=timedelta(seconds=LASTING)).write(tmp_path, "client")
            until = time.monotonic() + LASTING + 0.2  # it ends at a whole second, and so before
            context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
            session = await asyncio.to_thread(_resumed, context, port)
            await asyncio.sleep(until - time.monotonic())
            found = await asyncio.to_thread(_connect, context, port, session)
            if found is not None:
                found.close()
            assert found is None, "an expired certificate is let in"

    asyncio.run(scenario())
