"""Retries, deadlines and message limits, against a real server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import numpy as np
import pytest

from carv.errors import Reason
from carv_client import (
    AsyncTeacherClient,
    AuthenticationError,
    CarvError,
    ClientClosedError,
    ClientConfig,
    Conditioning,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    ResourceExhaustedError,
    TeacherClient,
    UnavailableError,
)
from carv_client._errors import error_class
from carv_client._transport import retry_wait
from tests.client.scripted_server import DEADLINES, Refusal, ScriptedServer, fails_first

CONDITIONING = Conditioning(handle="h", teacher="", label="test")
QUICK = {"retry_initial_seconds": 0.01, "retry_max_seconds": 0.05}


def connect(server: ScriptedServer, **config: Any) -> TeacherClient:
    config = {**QUICK, **config}
    return TeacherClient(ClientConfig(address=server.address, **config), jitter=lambda: 0.5)


# The policy as a pure function.

POLICY = ClientConfig(retry_attempts=4, retry_initial_seconds=0.1, retry_max_seconds=0.3)


def test_backoff_doubles_up_to_its_bound_and_stops_at_the_last_attempt() -> None:
    error = UnavailableError("down")
    waits = [retry_wait(error, attempt, POLICY, lambda: 1.0) for attempt in (1, 2, 3, 4)]
    assert waits == pytest.approx([0.1, 0.2, 0.3, None])
    assert retry_wait(error, 3, POLICY, lambda: 0.0) == pytest.approx(0.15)


@pytest.mark.parametrize("jitter", [0.0, 0.7])
def test_the_delay_that_the_server_asks_for_is_a_lower_bound(jitter: float) -> None:
    for kind in (UnavailableError, ResourceExhaustedError):
        wait = retry_wait(kind("wait", retry_delay=9.0), 1, POLICY, lambda: jitter)
        assert wait == pytest.approx(9.0 * (1 + 0.1 * jitter))


@pytest.mark.parametrize(
    "error",
    [
        ResourceExhaustedError("no RetryInfo"),
        MessageTooLargeError("never"),
        InvalidRequestError("bad"),
        NotFoundError("gone", retry_delay=1.0),
        DeadlineExceededError("late", retry_delay=1.0),
        InternalError("broken", retry_delay=1.0),
        ClientClosedError("closed"),
    ],
)
def test_nothing_else_is_retried(error: CarvError) -> None:
    assert retry_wait(error, 1, POLICY, lambda: 0.5) is None


# The policy at work.


def test_unavailable_is_retried_until_it_works() -> None:
    with (
        ScriptedServer(fails_first(3, Refusal.of(Reason.DRAINING))) as server,
        connect(server, retry_attempts=4) as client,
    ):
        assert client.list_teachers() == []
        assert len(server.calls) == 4


def test_unavailable_is_given_up_after_the_last_attempt() -> None:
    with (
        ScriptedServer(fails_first(9, Refusal.of(Reason.DRAINING))) as server,
        connect(server, retry_attempts=3) as client,
    ):
        with pytest.raises(UnavailableError) as caught:
            client.list_teachers()
        assert caught.value.reason == "DRAINING"
        assert len(server.calls) == 3


def test_resource_exhausted_waits_as_long_as_told() -> None:
    refusal = Refusal.of(Reason.QUEUE_FULL, retry_delay_seconds=0.2)
    with ScriptedServer(fails_first(1, refusal)) as server, connect(server) as client:
        client.list_teachers()
        first, second = server.calls
        assert second.moment - first.moment >= 0.2


def test_resource_exhausted_without_retry_info_is_final() -> None:
    with (
        ScriptedServer(fails_first(1, Refusal.of(Reason.QUEUE_FULL))) as server,
        connect(server) as client,
    ):
        with pytest.raises(ResourceExhaustedError) as caught:
            client.list_teachers()
        assert not isinstance(caught.value, MessageTooLargeError)
        assert len(server.calls) == 1


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    refusal = Refusal.of(Reason.QUEUE_FULL, retry_delay_seconds=30.0)
    with ScriptedServer(fails_first(1, refusal)) as server, connect(server) as client:
        start = time.monotonic()
        with pytest.raises(ResourceExhaustedError) as caught:
            client.list_teachers(timeout=5.0)
        assert caught.value.retry_delay == 30.0
        assert time.monotonic() - start < 4.0


def test_nobody_at_the_address_is_unavailable() -> None:
    config = ClientConfig(address="127.0.0.1:9", retry_attempts=2, retry_initial_seconds=0.01)
    with TeacherClient(config) as client, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        client.list_teachers()


def test_a_stalled_server_ends_with_the_deadline() -> None:
    with (
        ScriptedServer(lambda *_: b"" if len(server.calls) == 1 else 30.0) as server,
        connect(server) as client,
    ):
        client.list_teachers()  # connects, which may take a while
        tries, seconds = 0, 0.0
        for seconds in DEADLINES:
            tries += 1
            with pytest.raises(DeadlineExceededError, match=f"within {seconds} s") as caught:
                client.list_teachers(timeout=seconds)
            assert isinstance(caught.value, TimeoutError)
            assert "ListTeachers" in str(caught.value)
            if len(server.calls) > 1:
                break
        _, *calls = server.calls
        assert 1 <= len(calls) <= tries, "a deadline that has passed is not tried again"
        assert calls[-1].seconds_left is not None
        assert calls[-1].seconds_left < seconds + 0.05  # gRPC's clock is coarse


def test_the_deadline_of_the_configuration_is_the_default_and_none_means_none() -> None:
    with ScriptedServer(fails_first(0, Refusal.of(Reason.INTERNAL))) as server:
        with connect(server) as client:
            client.list_teachers()
        with connect(server, timeout_seconds=None) as client:
            client.list_teachers()
    default, never = (call.seconds_left for call in server.calls)
    assert default == pytest.approx(120.0, abs=5.0)
    assert never is None or never > 1e6


def test_retries_share_one_deadline() -> None:
    with (
        ScriptedServer(fails_first(1, Refusal.of(Reason.QUEUE_FULL, retry_delay_seconds=0.5))) as s,
        connect(s) as client,
    ):
        client.list_teachers(timeout=10.0)
        first, second = (call.seconds_left for call in s.calls)
        assert first is not None
        assert second is not None
        assert second < first - 0.4


def test_an_oversize_request_is_refused_before_it_is_sent() -> None:
    with (
        ScriptedServer(fails_first(0, Refusal.of(Reason.INTERNAL))) as server,
        connect(server, max_message_bytes=1000) as client,
    ):
        with pytest.raises(MessageTooLargeError, match="limit is 1000") as caught:
            client.estimate_gradient(np.zeros((4, 4, 8, 8)), CONDITIONING, guidance_scale=1.0)
        assert [v.field for v in caught.value.violations] == ["latents"]
        with pytest.raises(MessageTooLargeError) as caught:
            client.estimate_gradient(
                np.zeros((1, 1)),
                CONDITIONING,
                guidance_scale=1.0,
                reference_latents=np.zeros((9, 99)),
            )
        assert [v.field for v in caught.value.violations] == ["objective.reference_latents"]
        assert server.calls == []


def test_a_server_with_a_lower_limit_says_so_without_a_rich_status() -> None:
    """gRPC refuses the message itself, with the code of overload; it must not be retried."""
    with ScriptedServer(fails_first(0, Refusal.of(Reason.INTERNAL)), 1000) as server:
        with connect(server) as client, pytest.raises(MessageTooLargeError) as caught:
            client.estimate_gradient(np.zeros((4, 99)), CONDITIONING, guidance_scale=1.0)
        assert caught.value.reason == "MESSAGE_TOO_LARGE"


def test_an_oversize_reply_is_too_large() -> None:
    with (
        ScriptedServer(lambda *_: b"\x00" * 3000) as server,
        connect(server, max_message_bytes=2000) as client,
        pytest.raises(MessageTooLargeError),
    ):
        client.list_teachers()


def test_a_reply_that_is_no_message_is_told_as_such() -> None:
    with (
        ScriptedServer(lambda *_: b"\xff\xff") as server,
        connect(server) as client,
        pytest.raises(InternalError, match=r"does not parse; is this a carv\.v1 server"),
    ):
        client.list_teachers()


def test_token_and_metadata_travel_and_stay_out_of_repr() -> None:
    with (
        ScriptedServer(fails_first(0, Refusal.of(Reason.INTERNAL))) as server,
        connect(server, token="s3cret", metadata={"x-job": "7"}) as client,
    ):
        client.list_teachers()
        metadata = server.calls[0].metadata
        assert (metadata["authorization"], metadata["x-job"]) == ("Bearer s3cret", "7")
        assert "s3cret" not in repr(client.config)


# Errors.

CLASSES = {
    Reason.MALFORMED_MESSAGE: InvalidRequestError,
    Reason.INVALID_FIELD: InvalidRequestError,
    Reason.TEACHER_NOT_FOUND: NotFoundError,
    Reason.CONDITIONING_NOT_FOUND: NotFoundError,
    Reason.LATENTS_NOT_FOUND: NotFoundError,
    Reason.MESSAGE_TOO_LARGE: MessageTooLargeError,
    Reason.CANCELLED: CarvError,
    Reason.QUEUE_FULL: ResourceExhaustedError,
    Reason.QUOTA_EXCEEDED: QuotaExceededError,
    Reason.UNAUTHENTICATED: AuthenticationError,
    Reason.TEACHER_NOT_ALLOWED: PermissionDeniedError,
    Reason.DEADLINE_EXPIRED: DeadlineExceededError,
    Reason.DRAINING: UnavailableError,
    Reason.NO_REPLICA: UnavailableError,
    Reason.NON_FINITE_RESULT: InternalError,
    Reason.REPLICA_FAILED: InternalError,
    Reason.INTERNAL: InternalError,
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_arrives_as_its_class_with_all_its_details(reason: Reason) -> None:
    refusal = Refusal.of(reason, "told so", metadata={"timestep": "17"})
    with (
        ScriptedServer(fails_first(1, refusal)) as server,
        connect(server, retry_attempts=1) as client,
        pytest.raises(CarvError) as caught,
    ):
        client.list_teachers()
    error = caught.value
    assert type(error) is CLASSES[reason]
    assert (error.code, error.reason) == (refusal.code, reason.value)
    assert error.metadata == {"timestep": "17"}
    assert str(error) == f"told so ({refusal.code.name}/{reason.value})"


def test_codes_without_a_reason_have_classes_too() -> None:
    special = {
        grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
        grpc.StatusCode.UNIMPLEMENTED: CarvError,
    }
    for code, kind in special.items():
        with (
            ScriptedServer(fails_first(1, Refusal(code))) as server,
            connect(server) as client,
            pytest.raises(CarvError) as caught,
        ):
            client.list_teachers()
        assert type(caught.value) is kind
    assert all(issubclass(error_class(code), CarvError) for code in grpc.StatusCode)


# The asynchronous client.


def test_many_calls_in_flight_on_one_async_client() -> None:
    async def main(address: str) -> float:
        start = time.monotonic()
        async with AsyncTeacherClient(address) as client:
            await asyncio.gather(*(client.list_teachers() for _ in range(20)))
        return time.monotonic() - start

    with ScriptedServer(lambda *_: 0.2) as server:
        assert asyncio.run(main(server.address)) < 20 * 0.2
        assert len(server.calls) == 20


def test_cancelling_a_task_cancels_its_call_and_closing_ends_the_rest() -> None:
    async def main(address: str) -> None:
        client = AsyncTeacherClient(address)
        cancelled = asyncio.create_task(client.list_teachers())
        closed = asyncio.create_task(client.list_teachers())
        await asyncio.sleep(0.2)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await client.close()
        with pytest.raises(ClientClosedError):
            await closed
        with pytest.raises(ClientClosedError):
            await client.list_teachers()
        await client.close()

    with ScriptedServer(lambda *_: 30.0) as server:
        asyncio.run(main(server.address))


def test_an_async_client_says_that_it_belongs_to_its_loop() -> None:
    with ScriptedServer(fails_first(0, Refusal.of(Reason.INTERNAL))) as server:
        client = AsyncTeacherClient(server.address)

        async def use() -> None:
            await client.list_teachers()

        first = asyncio.new_event_loop()
        first.run_until_complete(use())
        with pytest.raises(RuntimeError, match="event loop"):
            asyncio.run(use())
        first.run_until_complete(client.close())
        first.close()
