"""Connections that the server ends at an age: whoever may come in again loses nothing by it, and
whoever may not is out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from carv_client import AsyncTeacherClient, CarvError, ClientConfig, UnavailableError
from carv_server.config import ServerConfig
from carv_server.serve import RunningServer
from carv_server.service import TeacherService
from carv_server.tenants.tenant import Tenant
from carv_server.tls import TlsConfig
from tests.server.streamed import Stream
from tests.server.teachers import SlowTeacher, oracle_teacher
from tests.server.wire import create_async, estimate_request
from tests.support.certificates import Authority
from tests.support.tenants import serving, tenant, token_of

NAME = "spiffe://carv.test/ns/render/sa/a"
LATENTS = np.zeros((1, 2, 4, 4), np.float32)
AGE = 1.0
CALLERS, MOST_SECONDS = 8, 60.0


class Seen:
    """What reaches the handler of EstimateGradient, by unary calls and on streams alike."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = Counter[int]()
        self.connections: dict[str, set[str]] = defaultdict(set)
        honest = TeacherService.estimate_gradient

        async def watched(service: TeacherService, request: Any, call: Any) -> Any:
            self.times[request.seed] += 1
            self.connections["unary" if request.seed % 2 else "submitted"].add(call.caller)
            return await honest(service, request, call)

        monkeypatch.setattr(TeacherService, "estimate_gradient", watched)

    def anew(self) -> bool:
        """Whether both kinds of calls came on three connections."""
        return all(len(self.connections[kind]) >= 3 for kind in ("unary", "submitted"))


async def _load(config: ClientConfig, seen: Seen, refine: bool) -> tuple[list[int], list[str]]:
    """Seeds that were answered, and what failed; as long as it takes to be a test."""
    answered, failed = list[int](), list[str]()
    end = time.monotonic() + MOST_SECONDS
    async with AsyncTeacherClient(config) as client:
        handle = await client.create_conditioning(class_id=0)

        async def unary(seed: int) -> None:
            estimate = await client.estimate_gradient(LATENTS, handle, draws=2, seed=seed)
            assert estimate.seed == seed
            answered.append(seed)

        async def submitted(seed: int) -> None:
            estimate = await (await client.submit(LATENTS, handle, draws=2, seed=seed))
            assert estimate.seed == seed
            answered.append(seed)

        async def refined(seed: int) -> None:
            """Longer than a connection gets old."""
            pieces = client.refine_gradient(LATENTS, handle, max_seconds=1.5 * AGE, seed=seed)
            assert [piece.final async for piece in pieces][-1]

        async def repeat(kind: Callable[[int], Awaitable[None]], first: int, step: int) -> None:
            seed = first
            while time.monotonic() < end and not (len(answered) > 100 and seen.anew()):
                try:
                    await kind(seed)
                except CarvError as error:
                    failed.append(f"{kind.__name__} {seed}: {error}")
                seed += step

        calls = [repeat(unary, 2 * i + 1, 2 * CALLERS) for i in range(CALLERS)]
        calls += [repeat(submitted, 2 * i, 2 * CALLERS) for i in range(CALLERS)]
        if refine:
            calls.append(repeat(refined, 0, 1))
        await asyncio.gather(*calls)
    return answered, failed


@pytest.mark.parametrize(
    ("stream_seconds", "grace"),
    [(0.5, 10.0), (60.0, 0.3)],
    ids=["in good order", "cut off"],
)
def test_connections_age_under_load_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream_seconds: float, grace: float
) -> None:
    """Unary calls, submitted requests and refinements over TLS, while connections live for a
    second. A client that renews its stream sends nothing twice; one that does not (and a server
    whose grace is too short for it) has what was cut off sent again.

    Breaks with: no age (one connection); a stream that never retires, where it should (few
    connections); one that is closed when it retires (requests computed twice); a client that does
    not retry (failures, where streams are cut off).
    """
    authority = Authority("servers")
    certificate, key = authority.server().write(tmp_path, "server")
    monkeypatch.setattr("carv_client._pipeline._STREAM_SECONDS", stream_seconds)
    seen = Seen(monkeypatch)
    in_order = stream_seconds < grace

    async def scenario() -> tuple[list[int], list[str]]:
        async with serving(
            {"mixture": SlowTeacher()},  # a refinement must outlast its connection
            [tenant("a")],
            tls=TlsConfig(certificate, key),
            connection_age_seconds=AGE,
            connection_grace_seconds=grace,
        ) as server:
            config = ClientConfig(
                address=server.address,
                token=token_of("a"),
                root_certificates=authority.pem,
                timeout_seconds=20.0,
            )
            return await _load(config, seen, refine=in_order)

    answered, failed = asyncio.run(scenario())
    assert failed == []
    assert len(answered) > 100, "no load, no test"
    assert set(answered) == set(seen.times)
    if in_order:
        assert max(seen.times.values()) == 1, "nothing was sent twice"
    assert seen.anew(), seen.connections


def test_an_authority_that_is_taken_out_reaches_connected_clients(tmp_path: Path) -> None:
    """Breaks with: no age (the old certificate goes on for as long as its connection does)."""
    servers, clients, other = (Authority(name) for name in ("servers", "clients", "clients, anew"))
    certificate, key = servers.server().write(tmp_path, "server")
    authorities = tmp_path / "clients.pem"
    authorities.write_bytes(clients.pem)
    own = clients.client(NAME)

    async def scenario() -> None:
        async with serving(
            {"mixture": oracle_teacher()},
            [Tenant("a", spiffe_ids=(NAME,))],
            tls=TlsConfig(certificate, key, authorities, True, reload_seconds=0.05),
            connection_age_seconds=AGE,
            connection_grace_seconds=1.0,
        ) as server:
            config = ClientConfig(
                address=server.address,
                root_certificates=servers.pem,
                certificate_chain=own.certificate,
                private_key=own.key,
                retry_attempts=1,
            )
            async with AsyncTeacherClient(config) as client:
                await client.list_teachers()
                authorities.write_bytes(other.pem)
                end = time.monotonic() + 10.0
                while time.monotonic() < end:
                    try:
                        await client.list_teachers(timeout=20.0)
                    except UnavailableError:
                        break
                    await asyncio.sleep(0.05)
                with pytest.raises(UnavailableError):  # and not for a moment alone
                    await client.list_teachers(timeout=20.0)

    asyncio.run(scenario())


def test_a_stream_that_is_never_renewed_ends_with_its_grace() -> None:
    """Of another client than ours. Breaks with: no grace (gRPC's own is endless)."""
    config = ServerConfig(
        address="127.0.0.1:0", connection_age_seconds=0.5, connection_grace_seconds=1.5
    )

    async def scenario() -> None:
        async with (
            RunningServer(config, {"mixture": oracle_teacher()}) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            request = estimate_request([await create_async(channel)], 1, 2)
            stream = Stream(channel)
            await stream.ask(1, request)
            assert (await stream.answer()).HasField("estimate")
            failure = await asyncio.wait_for(stream.failure(), 10.0)
            assert failure.code is grpc.StatusCode.UNAVAILABLE
            assert await create_async(channel), "and the next call has a connection again"

    asyncio.run(scenario())
