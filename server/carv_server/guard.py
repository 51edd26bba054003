"""The door: every call but a health check shows a credential, or no handler is reached.

One interceptor stands in front of all methods that are registered, so that a new one is closed
from the start. gRPC reads the whole message of a method with one request before its handler runs:
so a call is turned away ahead of that, unless a certificate may speak for it, which handlers alone
can see.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, cast

import grpc
import grpc.aio

from carv_server.statuses import abort
from carv_server.tenants.access import Credential, current_credential, denied
from carv_server.tenants.tenancy import Tenancy

__all__ = ["Guard"]

_log = logging.getLogger(__name__)

# Probes have no credentials, and learn nothing but SERVING or not.
_OPEN_SERVICE = "/grpc.health.v1.Health/"
_BEARER = "bearer "
_MOST_TOKEN_CHARACTERS = 4096
_LOG_SECONDS = 1.0

_Handler = Any  # grpc.RpcMethodHandler, whose four behaviours have no common type


class _Doors(NamedTuple):
    """What stands for a handler: itself behind the door, and what turns away unread. The first
    field keeps the handler alive, whose address is its key."""

    handler: _Handler
    guarded: _Handler
    denying: _Handler


class Guard(grpc.aio.ServerInterceptor):
    """Finds the credential of each call, in a few microseconds, and puts it in
    ``current_credential``; without one the call ends with UNAUTHENTICATED.

    Args:
        observe: told the method, as /package.Service/Method, of each call that is denied.
    """

    def __init__(self, tenancy: Tenancy, observe: Callable[[str], None]) -> None:
        self._tenancy = tenancy
        self._observe = observe
        # By handler: one for each method that is registered.
        self._doors: dict[int, _Doors] = {}
        self._denied = 0
        self._logged = -_LOG_SECONDS

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        if handler is None or method.startswith(_OPEN_SERVICE):
            return handler
        doors = self._doors.get(id(handler))
        if doors is None:
            doors = _Doors(handler, self._wrapped(handler, method), self._denying(method))
            self._doors[id(handler)] = doors
        # Also where no metadata came, whatever the stubs say.
        metadata = cast(Any, handler_call_details).invocation_metadata or ()
        shown = _authorization(metadata)
        if shown is None:
            return doors.guarded if self._tenancy.knows_certificates else doors.denying
        credential = self._by_header(shown)
        if credential is None:
            return doors.denying
        # Interceptors run in the context of the handler.
        current_credential.set(credential)
        return doors.guarded

    def _denying(self, method: str) -> _Handler:
        """Ends a call of any kind and reads nothing of it: the kind is the server's own matter, and
        of a stream of requests a handler reads what it asks for."""

        async def denying(requests: Any, context: Any) -> None:
            await self._deny(context, method)

        return cast(Any, grpc.stream_stream_rpc_method_handler)(denying)

    def _wrapped(self, handler: _Handler, method: str) -> _Handler:
        """The same method behind the door. Replies of a stream are written, whether the handler
        writes or yields them."""
        inner = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        if inspect.isasyncgenfunction(inner):

            async def guarded(request: Any, context: Any) -> Any:
                await self._enter(context, method)
                async for reply in inner(request, context):
                    await context.write(reply)

        elif inspect.iscoroutinefunction(inner):

            async def guarded(request: Any, context: Any) -> Any:
                await self._enter(context, method)
                return await inner(request, context)

        else:
            raise TypeError(f"{inner!r} is not asynchronous: it would run beside the door")
        names = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        make = cast(Any, names[handler.request_streaming, handler.response_streaming])
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    async def _enter(self, context: Any, method: str) -> None:
        credential = current_credential.get()
        if credential is None:
            credential = self._credential(context)
        if credential is None or credential.access is None:  # the latter: since it was shown
            await self._deny(context, method)
        current_credential.set(credential)

    async def _deny(self, context: Any, method: str) -> None:
        self._observe(method)
        self._note(context.peer())
        await abort(context, denied())

    def _credential(self, context: Any) -> Credential | None:
        shown = _authorization(context.invocation_metadata() or ())
        if shown is not None:
            # One that shows a token is judged by it, whatever its certificate says.
            return self._by_header(shown)
        if self._tenancy.knows_certificates:
            for name in context.auth_context().get("peer_spiffe_id", ()):
                return self._tenancy.by_spiffe_id(name.decode(errors="replace"))
        return None

    def _by_header(self, value: str | bytes) -> Credential | None:
        if isinstance(value, bytes) or len(value) > _MOST_TOKEN_CHARACTERS:
            return None
        scheme, token = value[: len(_BEARER)], value[len(_BEARER) :]
        if scheme.lower() != _BEARER or not token:
            return None
        return self._tenancy.by_token(token.encode())

    def _note(self, peer: str) -> None:
        """To the log, once a second at most: refusals are cheap to cause."""
        self._denied += 1
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            _log.warning(
                "%d calls without a valid credential; the last came from %s", self._denied, peer
            )
            self._logged, self._denied = now, 0


def _authorization(metadata: Iterable[tuple[str, str | bytes]]) -> str | bytes | None:
    """The first that is shown."""
    for key, value in metadata:
        if key == "authorization":
            return value
    return None
