"""Mutual TLS: who reaches a handler, certificates that rotate under load, and the health port."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2

from carv_client import (
    AsyncTeacherClient,
    AuthenticationError,
    CarvError,
    ClientConfig,
    UnavailableError,
)
from carv_server.serve import RunningServer
from carv_server.service import TeacherService
from carv_server.tenants.tenant import Tenant
from carv_server.tls import TlsConfig, read_certificates
from tests.server.teachers import oracle_teacher
from tests.server.wire import health_stub
from tests.support.certificates import Authority, Pair
from tests.support.logs import logged
from tests.support.tenants import serving, tenant, token_of

NAME = "spiffe://carv.test/ns/render/sa/a"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Place:
    """An authority with a server's certificate, and one for clients."""

    folder: Path
    servers: Authority
    clients: Authority

    def config(self) -> TlsConfig:
        return TlsConfig(
            self.folder / "server.pem",
            self.folder / "server.key",
            self.folder / "clients.pem",
            require_client_certificate=True,
            reload_seconds=0.05,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path, Authority("servers"), Authority("clients"))
    found.servers.server().write(tmp_path, "server")
    (tmp_path / "clients.pem").write_bytes(found.clients.pem)
    return found


@asynccontextmanager
async def _serving(
    place: Place, *tenants: Tenant, tls: TlsConfig | None = None
) -> AsyncIterator[RunningServer]:
    teachers = {"mixture": oracle_teacher()}
    config: dict[str, Any] = {"tls": tls or place.config(), "health_address": "127.0.0.1:0"}
    async with serving(teachers, tenants, **config) as server:
        yield server


def _once(server: RunningServer) -> ClientConfig:
    """One attempt, which tells who gets in, and no deadline that a slow handshake could meet."""
    return ClientConfig(address=server.address, retry_attempts=1, timeout_seconds=20.0)


def _client(server: RunningServer, place: Place, pair: Pair | None, **more: Any) -> Any:
    own = {} if pair is None else {"private_key": pair.key, "certificate_chain": pair.certificate}
    return AsyncTeacherClient(_once(server), root_certificates=place.servers.pem, **own, **more)


def test_who_reaches_a_handler(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix: no certificate, another authority's, one that has expired, plaintext, and one
    that no tenant has, with a token and without; no handler is reached, and the right one gets
    through.

    Breaks with: `require_client_certificate` False (no certificate gets through with a token),
    `client_ca` of the server's authority, or any SPIFFE id taken for a tenant's.
    """
    reached: list[str] = []
    honest = TeacherService.list_teachers

    async def watched(self: TeacherService, request: Any, call: Any) -> Any:
        reached.append(call.tenant)
        return await honest(self, request, call)

    monkeypatch.setattr(TeacherService, "list_teachers", watched)
    good = place.clients.client(NAME)
    refused: dict[str, tuple[Pair | None, type[CarvError]]] = {
        "no certificate": (None, UnavailableError),
        "another authority": (Authority("clients").client(NAME), UnavailableError),
        "the server's authority": (place.servers.client(NAME), UnavailableError),
        "expired": (place.clients.client(NAME, expired=True), UnavailableError),
        "nobody's name": (place.clients.client(NAME + "a"), AuthenticationError),
        "another domain": (
            place.clients.client("spiffe://carv.tes/ns/render/sa/a"),
            AuthenticationError,
        ),
    }

    async def scenario() -> None:
        tenants = [Tenant("a", spiffe_ids=(NAME,)), tenant("b")]
        async with _serving(place, *tenants) as server:
            for case, (pair, error) in refused.items():
                async with _client(server, place, pair) as client:
                    with pytest.raises(error):
                        await client.list_teachers()
                    assert reached == [], case
            async with _client(server, place, None, token=token_of("b")) as client:
                with pytest.raises(UnavailableError):
                    await client.list_teachers()
            async with AsyncTeacherClient(_once(server), token=token_of("b")) as client:
                with pytest.raises(UnavailableError):
                    await client.list_teachers()
            assert reached == []
            async with _client(server, place, good) as client:
                await client.list_teachers()
            # A token decides, also against the certificate.
            async with _client(server, place, good, token=token_of("b")) as client:
                await client.list_teachers()
            async with _client(server, place, good, token="x") as client:
                with pytest.raises(AuthenticationError):
                    await client.list_teachers()
            assert reached == ["a", "b"]

    asyncio.run(scenario())


def test_tokens_over_tls_without_client_certificates(place: Place) -> None:
    async def scenario() -> None:
        tls = TlsConfig(place.folder / "server.pem", place.folder / "server.key")
        async with _serving(place, tenant("a"), tls=tls) as server:
            async with _client(server, place, None, token=token_of("a")) as client:
                assert [t.id for t in await client.list_teachers()] == ["mixture"]
            async with AsyncTeacherClient(
                _once(server), token=token_of("a"), root_certificates=place.clients.pem
            ) as client:  # a server that this client does not trust
                with pytest.raises(UnavailableError):
                    await client.list_teachers()

    asyncio.run(scenario())


def _serial(address: str) -> int:
    """Of the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def _shown(server: RunningServer, wanted: int) -> None:
    """Until new connections are shown a certificate."""
    for _ in range(200):
        if await asyncio.to_thread(_serial, server.address) == wanted:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the new certificate is not shown")


def test_certificates_rotate_under_load_and_nothing_fails(place: Place) -> None:
    """Clients that keep their connection, and ones that connect anew for each call, while the
    certificate changes three times, file by file as a person would write it; then both authorities.

    Breaks with: a watcher that is not started (the new is not shown), or one that takes the
    certificate before its key is there (`read_certificates` without its check).
    """
    tls = TlsConfig(place.folder / "server.pem", place.folder / "server.key", reload_seconds=0.02)
    answered = {"kept": 0, "new": 0}
    over = False

    async def load(server: RunningServer, kind: str) -> None:
        latents = np.zeros((1, 2, 4, 4), np.float32)
        secrets: dict[str, Any] = {"token": token_of("a"), "root_certificates": place.servers.pem}
        async with AsyncTeacherClient(server.address, **secrets) as kept:
            handle = await kept.create_conditioning(class_id=0)
            while not over:
                if kind == "kept":
                    await kept.estimate_gradient(latents, handle, draws=2)
                else:
                    async with AsyncTeacherClient(server.address, **secrets) as client:
                        await client.estimate_gradient(latents, handle, draws=2)
                answered[kind] += 1

    async def scenario() -> None:
        nonlocal over
        async with _serving(place, tenant("a"), tls=tls) as server:
            tasks = [asyncio.create_task(load(server, kind)) for kind in ("kept", "new", "new")]
            for _ in range(3):
                pair, before = place.servers.server(), dict(answered)
                (place.folder / "server.pem").write_bytes(pair.certificate)
                await asyncio.sleep(0.15)  # half written
                (place.folder / "server.key").write_bytes(pair.key)
                await _shown(server, pair.serial)
                while any(answered[kind] < before[kind] + 5 for kind in answered):
                    await asyncio.sleep(0.02)
                    assert not any(task.done() for task in tasks), "a call failed"
            over = True
            await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_bad_pair_is_not_taken_and_is_logged(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks with: `read_certificates` without its check of the pair."""

    async def scenario() -> None:
        async with _serving(place, tenant("a")) as server:
            before = x509.load_pem_x509_certificate((place.folder / "server.pem").read_bytes())
            with caplog.at_level(logging.INFO, "carv_server"):
                (place.folder / "server.key").write_bytes(place.servers.server().key)
                await logged(caplog, "kept as they were")
            await asyncio.sleep(0.3)  # some more looks at the files
            assert await asyncio.to_thread(_serial, server.address) == before.serial_number
            assert caplog.text.count("kept as they were") == 1
            assert "PRIVATE" not in caplog.text
            pair = place.servers.server()
            pair.write(place.folder, "server")
            await _shown(server, pair.serial)

    asyncio.run(scenario())


def test_a_new_authority_takes_the_place_of_the_old(place: Place) -> None:
    """Breaks with: `client_ca` left out of what is read again."""

    async def scenario() -> None:
        old, other = place.clients.client(NAME), Authority("clients, anew")
        async with _serving(place, Tenant("a", spiffe_ids=(NAME,))) as server:
            async with _client(server, place, old) as client:
                await client.list_teachers()
            (place.folder / "clients.pem").write_bytes(other.pem)
            for _ in range(100):
                try:
                    async with _client(server, place, other.client(NAME)) as client:
                        await client.list_teachers()
                    break
                except CarvError:
                    await asyncio.sleep(0.05)
            async with _client(server, place, old) as client:
                with pytest.raises(UnavailableError):
                    await client.list_teachers()

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", ["", "-----BEGIN CERTIFICATE-----\nxx"])
@pytest.mark.parametrize("name", ["server.pem", "server.key", "clients.pem"])
def test_what_is_half_written_is_refused(place: Place, name: str, broken: str) -> None:
    read_certificates(place.config())
    (place.folder / name).write_text(broken)
    with pytest.raises(ValueError, match=re.escape(name)):
        read_certificates(place.config())


def test_authorities_with_words_around_them_are_served(place: Place) -> None:
    """As `carv config check` finds them sound. Breaks with: authorities decoded as ASCII."""
    file = place.folder / "clients.pem"
    file.write_text(f"# Prüfstelle Zürich\n{place.clients.pem.decode()}", encoding="utf-8")

    async def scenario() -> None:
        async with _serving(place, Tenant("a", spiffe_ids=(NAME,))) as server:
            async with _client(server, place, place.clients.client(NAME)) as client:
                await client.list_teachers()
            async with _client(server, place, Authority("another").client(NAME)) as client:
                with pytest.raises(UnavailableError):
                    await client.list_teachers()

    asyncio.run(scenario())


def test_the_health_port_serves_health_alone_and_hears_of_the_drain(place: Place) -> None:
    """In plaintext, without a certificate, with the statuses of the main port.

    Breaks with: a health port with the main port's handlers, or with statuses of its own.
    """

    async def scenario() -> None:
        async with (
            _serving(place, tenant("a")) as server,
            grpc.aio.insecure_channel(server.health_address) as channel,
        ):
            request = health_pb2.HealthCheckRequest()
            watch = health_stub(channel).Watch(request)
            assert (await watch.read()).status == SERVING
            for method in (
                "/carv.v1.TeacherService/ListTeachers",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(method)(b"", timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            draining = asyncio.create_task(server.drain())
            assert (await watch.read()).status == NOT_SERVING
            await draining

    asyncio.run(scenario())
