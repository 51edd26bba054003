"""Default deny: every method that a server registers is closed to callers without a credential,
but those of grpc.health.v1."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc.aio._server import Server as _Server  # grpc.aio.Server is its abstract base

from carv.errors import Reason
from carv.v1 import teacher_service_pb2 as pb
from carv_client import AsyncTeacherClient, AuthenticationError
from carv_server.guard import Guard
from carv_server.service import TeacherService
from carv_server.tenants.tenancy import Tenancy
from carv_server.tenants.tenant import Tenant
from tests.server.teachers import oracle_teacher
from tests.server.wire import failure_of
from tests.support.tenants import bearer, serving, tenant, token_of

BAD = {
    "none": (),
    "empty": (("authorization", ""),),
    "no scheme": (("authorization", token_of("a")),),
    "no token": (("authorization", "Bearer "),),
    "another token": (("authorization", "Bearer token-of-b"),),
    "a part of it": (("authorization", f"Bearer {token_of('a')[:-1]}"),),
    "more than it": (("authorization", f"Bearer {token_of('a')}x"),),
    "another scheme": (("authorization", f"Basic {token_of('a')}"),),
    "its digest": (("authorization", f"Bearer {tenant('a').token_sha256[0].hex()}"),),
    "bad then good": (("authorization", "Bearer x"), *bearer("a")),
    "huge": (("authorization", "Bearer " + "x" * 8000),),
    "another key": (("x-authorization", f"Bearer {token_of('a')}"),),
}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Handlers by full method name, of every server that is made, as they are registered."""
    found: dict[str, Any] = {}
    generic = _Server.add_generic_rpc_handlers
    direct = _Server.add_registered_method_handlers

    def add_generic(self: Any, handlers: Any) -> None:
        for handler in handlers:
            found.update(handler._method_handlers)
        generic(self, handlers)

    def add_direct(self: Any, service: str, handlers: dict[str, Any]) -> None:
        found.update({f"/{service}/{name}": handler for name, handler in handlers.items()})
        direct(self, service, handlers)

    monkeypatch.setattr(_Server, "add_generic_rpc_handlers", add_generic)
    monkeypatch.setattr(_Server, "add_registered_method_handlers", add_direct)
    return found


async def _call(channel: grpc.aio.Channel, method: str, handler: Any, metadata: Any) -> None:
    """One empty message; raises AioRpcError unless it ends with OK."""
    kind = f"{'stream' if handler.request_streaming else 'unary'}_"
    kind += "stream" if handler.response_streaming else "unary"
    request = iter([b""]) if handler.request_streaming else b""
    call = getattr(channel, kind)(method)(request, metadata=metadata, timeout=10)
    if handler.response_streaming:
        async for _ in call:
            pass
    else:
        await call


@pytest.mark.parametrize("case", BAD)
def test_no_method_is_open_without_a_credential(
    registered: dict[str, Any], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Methods as the server registered them, so that a new one is covered by itself; no handler
    of the service is reached.

    Breaks with: an exception for one more service in `Guard`, such as reflection's; a handler
    that is returned as it is; `Guard` left out of the server.
    """
    reached: list[str] = []
    for name in vars(TeacherService):
        if not name.startswith("_"):
            monkeypatch.setattr(TeacherService, name, lambda *_, name=name: reached.append(name))

    async def scenario() -> None:
        async with (
            serving({"mixture": oracle_teacher()}, [tenant("a")]) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            closed = [m for m in registered if not m.startswith("/grpc.health.v1.Health/")]
            for method in closed:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await _call(channel, method, registered[method], BAD[case])
                failure = failure_of(caught.value)
                assert failure.code is grpc.StatusCode.UNAUTHENTICATED, method
                assert failure.reason == Reason.UNAUTHENTICATED.value
                assert "token-of" not in failure.message
            own = pb.DESCRIPTOR.services_by_name["TeacherService"]
            assert {f"/{own.full_name}/{method.name}" for method in own.methods} < set(closed)
            assert any("reflection" in method for method in closed)
            await _call(
                channel,
                "/grpc.health.v1.Health/Check",
                registered["/grpc.health.v1.Health/Check"],
                BAD[case],
            )

    asyncio.run(scenario())
    assert reached == []


def test_every_method_is_open_with_one(registered: dict[str, Any]) -> None:
    """The door keeps nobody out who has a key: whatever an empty message comes to, it is not
    UNAUTHENTICATED. Breaks with: a door that never opens."""

    async def scenario() -> None:
        async with (
            serving({"mixture": oracle_teacher()}, [tenant("a"), tenant("b")]) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            assert len(registered) > 10
            for metadata in (bearer("a"), (("authorization", f"bEaReR {token_of('b')}"),)):
                for method, handler in registered.items():
                    if method.startswith("/grpc.health.v1.Health/"):
                        continue
                    try:
                        await _call(channel, method, handler, metadata)
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, method  # noqa: PT017

    asyncio.run(scenario())


async def _unread(channel: grpc.aio.Channel, method: str, metadata: Any) -> grpc.StatusCode:
    """How a call ends that sends no message and does not say that it will send none."""
    call: Any = channel.stream_stream(method)(metadata=metadata, timeout=3)
    return await call.code()


@pytest.mark.parametrize("certificates", [False, True])
@pytest.mark.parametrize("case", [case for case in BAD if "authorization" in dict(BAD[case])])
def test_no_message_is_read_without_a_valid_token(
    registered: dict[str, Any], case: str, certificates: bool
) -> None:
    """Callers without one would otherwise have the server hold up to a whole message each. Also
    where certificates may speak for a caller: a token that is shown decides.

    Breaks with: a check in the handler alone (the call waits for its message).
    """
    others = [Tenant("c", spiffe_ids=("spiffe://carv.test/c",))] if certificates else []

    async def scenario() -> None:
        async with (
            serving({"mixture": oracle_teacher()}, [tenant("a"), *others]) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            for method in registered:
                if not method.startswith("/grpc.health.v1.Health/"):
                    code = await _unread(channel, method, BAD[case])
                    assert code is grpc.StatusCode.UNAUTHENTICATED, method

    asyncio.run(scenario())


def test_without_a_token_it_depends_on_whether_certificates_count() -> None:
    """Only a handler can see those, and it has the message by then."""

    async def scenario() -> None:
        method, large = "/carv.v1.TeacherService/EstimateGradient", b"\0" * (8 << 20)
        for others in ([], [Tenant("c", spiffe_ids=("spiffe://carv.test/c",))]):
            async with (
                serving({"mixture": oracle_teacher()}, [tenant("a"), *others]) as server,
                grpc.aio.insecure_channel(server.address) as channel,
            ):
                code = await _unread(channel, method, ())
                late = grpc.StatusCode.DEADLINE_EXCEEDED
                assert code is (late if others else grpc.StatusCode.UNAUTHENTICATED)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(method)(large, timeout=10)
                failure = failure_of(caught.value)
                assert failure.code is grpc.StatusCode.UNAUTHENTICATED
                assert failure.reason == Reason.UNAUTHENTICATED.value

    asyncio.run(scenario())


class _Aborting:
    """A call's context, as far as a door knows it."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def peer(self) -> str:
        return "somebody"

    async def abort(self, code: grpc.StatusCode, *_: Any, **__: Any) -> None:
        self.code = code
        raise grpc.aio.AbortError


def test_a_token_that_goes_while_its_message_comes_opens_nothing() -> None:
    """A message may take long to come, and its handler need not ask again.

    Breaks with: a door that does not look again once the message is there.
    """
    tenancy, denied, reached = Tenancy([tenant("a")], {}, lambda: 0.0), [], []
    guard = Guard(tenancy, denied.append)

    async def inner(request: Any, context: Any) -> Any:
        reached.append(request)

    async def scenario() -> None:
        handler = grpc.unary_unary_rpc_method_handler(inner)  # pyright: ignore[reportArgumentType]

        async def find(_: Any) -> Any:
            return handler

        details: Any = SimpleNamespace(method="/a.B/C", invocation_metadata=bearer("a"))
        guarded = await guard.intercept_service(find, details)
        await guarded.unary_unary(1, _Aborting())
        context = _Aborting()
        tenancy.replace([])
        with pytest.raises(grpc.aio.AbortError):
            await guarded.unary_unary(2, context)
        assert context.code is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(scenario())
    assert (reached, denied) == ([1], ["/a.B/C"])


def test_calls_of_a_connection_are_bounded() -> None:
    """As the server tells its clients. Breaks with: gRPC's own limit, which is none."""

    async def scenario() -> None:
        async with serving({"mixture": oracle_teacher()}, [tenant("a")]) as server:
            host, _, port = server.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
            connection.initiate_connection()
            writer.write(connection.data_to_send())
            told: list[Any] = []
            while not told:
                events = connection.receive_data(await reader.read(1 << 16))
                told = [e for e in events if isinstance(e, h2.events.RemoteSettingsChanged)]
            writer.close()
            await writer.wait_closed()
            assert connection.remote_settings.max_concurrent_streams == 1024

    asyncio.run(scenario())


def test_a_stream_ends_for_a_token_that_is_taken_out() -> None:
    """Requests on a stream that is open are refused once its credential is gone.

    Breaks with: access that is fixed when the stream opens.
    """

    async def scenario() -> None:
        async with (
            serving({"mixture": oracle_teacher()}, [tenant("a"), tenant("b")]) as server,
            AsyncTeacherClient(server.address, token=token_of("a")) as client,
        ):
            handle = await client.create_conditioning(class_id=0)
            latents = np.zeros((1, 2, 4, 4), np.float32)
            await (await client.submit(latents, handle, draws=2, seed=1))
            server._take_tenants([tenant("b")])
            with pytest.raises(AuthenticationError):
                await (await client.submit(latents, handle, draws=2, seed=2))
            with pytest.raises(AuthenticationError):
                await client.list_teachers()

    asyncio.run(scenario())


def test_a_handler_that_would_run_beside_the_door_is_refused() -> None:
    """Breaks with: no check for handlers that gRPC would run in a thread."""
    guard = Guard(Tenancy([], {}, lambda: 0.0), lambda method: None)

    def blocking(request: Message, context: Any) -> Message:
        return request

    with pytest.raises(TypeError, match="not asynchronous"):
        guard._wrapped(grpc.unary_unary_rpc_method_handler(blocking), "/a.B/C")
