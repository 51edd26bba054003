"""Calls in progress whose credential, or whose teacher, is taken away: no further piece of them is
let through."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from carv.errors import Reason
from carv.tensors import encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.call import Call
from carv_server.errors import RequestError
from carv_server.tenants.access import Access, Credential, access_check, current_credential
from carv_server.tenants.quota import Quota
from carv_server.tenants.tenant import Tenant
from tests.server.teachers import GatedTeacher
from tests.server.wire import estimate_request, failure_of, latents, path
from tests.support.tenants import bearer, digest, serving, tenant, token_of

MINE, NONE = frozenset({"mixture"}), frozenset({"other"})
CHANGES: dict[str, tuple[list[Tenant], Reason]] = {
    "the tenant": ([tenant("b")], Reason.UNAUTHENTICATED),
    "the token": ([Tenant("a", token_sha256=(digest("new"),))], Reason.UNAUTHENTICATED),
    "the token, to another": (
        [Tenant("b", token_sha256=(digest(token_of("a")),))],
        Reason.UNAUTHENTICATED,
    ),
    "the teacher": ([tenant("a", teachers=NONE)], Reason.TEACHER_NOT_ALLOWED),
}


def _refine() -> pb.RefineGradientRequest:
    wanted = estimate_request([], renders=1)
    request = pb.RefineGradientRequest(
        latents=wanted.latents,
        objective=wanted.objective,
        seed=7,
        max_draws=1024,
        target_relative_standard_error=1e-6,
    )
    return request


def _profile() -> pb.ProfileTeacherRequest:
    request = pb.ProfileTeacherRequest(
        latents=encode_tensor(latents(8)), bins=24, draws_per_bin=32, seed=7
    )
    request.objective.noise_coefficient.constant = -1.0
    return request


REQUESTS = {"RefineGradient": _refine, "ProfileTeacher": _profile}


async def _ended(call: Any) -> None:
    async for _ in call:
        pass


async def _handle(channel: grpc.aio.Channel) -> str:
    request = pb.CreateConditioningRequest()
    request.source.classes.class_ids.append(0)
    call = channel.unary_unary(path("CreateConditioning"))
    reply = await call(request.SerializeToString(), metadata=bearer("a"))
    return pb.CreateConditioningResponse.FromString(reply).conditionings[0].handle


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", REQUESTS)
def test_pieces_stop_when_something_is_taken_away(method: str, change: str) -> None:
    """With one microbatch on the device and the rest to come; what was let through before goes on,
    and is a small part.

    Breaks with: a meter without its check; a check of what the call began with.
    """
    tenants, reason = CHANGES[change]

    async def scenario() -> None:
        teacher = GatedTeacher()
        async with (
            serving({"mixture": teacher}, [tenant("a", teachers=MINE)]) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            request: Any = REQUESTS[method]()
            branch = request.objective.branches.add(conditionings=[await _handle(channel)])
            branch.coefficient.constant = 1.0
            call: Any = channel.unary_stream(path(method))(
                request.SerializeToString(), metadata=bearer("a"), timeout=30
            )
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            server._take_tenants(tenants)
            teacher.gate.set()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _ended(call)
            assert failure_of(caught.value).reason == reason.value
            assert sum(map(len, teacher.forwards)) <= 2 * 8 * 32

    asyncio.run(scenario())


def test_pieces_go_on_where_nothing_is_taken_away() -> None:
    """Other tenants come and go, weights and quotas change. Breaks with: a check for sameness."""

    async def scenario() -> None:
        teacher = GatedTeacher()
        async with (
            serving({"mixture": teacher}, [tenant("a"), tenant("b")]) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            request = _refine()
            request.max_draws = 64
            branch = request.objective.branches.add(conditionings=[await _handle(channel)])
            branch.coefficient.constant = 1.0
            call: Any = channel.unary_stream(path("RefineGradient"))(
                request.SerializeToString(), metadata=bearer("a"), timeout=30
            )
            assert await asyncio.to_thread(teacher.entered.wait, 10)
            changed = tenant("a", weight=3.0, evaluations_per_second=1e6, teachers=MINE)
            server._take_tenants([changed, tenant("c")])
            teacher.gate.set()
            await _ended(call)

    asyncio.run(scenario())


def test_terms_of_a_call_check_its_credential() -> None:
    """Also in tasks of their own, and after the call's context is left."""
    access = Access("a", None, Quota("a", lambda: 0.0))
    credential = Credential(access)
    token = current_credential.set(credential)
    terms = Call(0.0, None, tenant="a", access=access).metered_terms(0, "mixture")
    check = access_check("mixture")
    current_credential.reset(token)
    assert terms.meter is not None
    with terms.meter.charged(1):
        check()
    credential.access = None
    with pytest.raises(RequestError) as caught, terms.meter.charged(1):
        pass
    assert caught.value.reason is Reason.UNAUTHENTICATED
    with pytest.raises(RequestError):
        check()
