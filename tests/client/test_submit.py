"""Submitted requests against a server that answers as told: futures, bounds, breaks and ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import grpc
import numpy as np
import pytest

from carv.errors import STATUS_CODES, ErrorDetails, Reason, make_status
from carv.tensors import encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_client import (
    AsyncTeacherClient,
    CarvError,
    ClientClosedError,
    ClientConfig,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    ResourceExhaustedError,
    TeacherClient,
    UnavailableError,
)
from tests.client.scripted_server import DEADLINES, Answer, Refusal
from tests.client.submitted import (
    LATENTS,
    STREAM,
    C,
    Held,
    Streaming,
    answer,
    connect,
    until,
)

DOWN = Refusal(grpc.StatusCode.UNAVAILABLE, "gone away")


def error(
    message: pb.StreamGradientsRequest, reason: Reason, **details: Any
) -> pb.StreamGradientsResponse:
    status = make_status(STATUS_CODES[reason], "no", ErrorDetails(reason.value, **details))
    return pb.StreamGradientsResponse(id=message.id, error=status)


def running(client: TeacherClient) -> int:
    submissions = client._client._submissions
    return 0 if submissions is None else len(submissions._running)


def test_answers_find_their_futures_in_any_order_over_one_stream() -> None:
    with Streaming(Held()) as server, connect(server, max_in_flight=64) as client:
        coming = {seed: client.submit(LATENTS, C, seed=seed) for seed in range(63)}
        until(lambda: len(server.asked) == 63)
        assert not any(future.done() for future in coming.values())
        assert client.submit(LATENTS, C, seed=999).result(5).seed == 999
        assert {seed: future.result(5).seed for seed, future in coming.items()} == {
            seed: seed for seed in range(63)
        }
        assert server.streams == 1
        assert len({message.id for message in server.asked}) == 64


def test_the_same_on_asyncio() -> None:
    async def main(server: Streaming) -> None:
        async with AsyncTeacherClient(server.address) as client:
            coming = [await client.submit(LATENTS, C, seed=seed) for seed in range(20)]
            await client.submit(LATENTS, C, seed=999)
            assert [estimate.seed for estimate in await asyncio.gather(*coming)] == list(range(20))

    with Streaming(Held()) as server:
        asyncio.run(main(server))


def test_what_is_submitted_is_what_estimate_gradient_asks_for() -> None:
    options: dict[str, Any] = {
        "guidance_scale": 3.0,
        "weighting": "uniform",
        "timestep_range": (0.1, 0.9),
        "reference_latents": None,
        "timesteps": [3, 4],
        "signs": [1, -1],
        "return_draws": True,
        "seed": 5,
        "timeout": 30.0,
    }
    with Streaming() as server, connect(server) as client:
        client.estimate_gradient(LATENTS, C, **options)
        client.submit(LATENTS, C, **options).result(5)
        alone = next(c.request for c in server.calls if c.method == "EstimateGradient")
        assert server.asked[0].estimate == alone
        assert 20.0 < server.asked[0].timeout_seconds < 30.0


def test_an_unknown_keyword_is_a_type_error() -> None:
    with Streaming() as server, connect(server) as client:
        submit: Any = client.submit
        with pytest.raises(TypeError, match="guidance_skale"):
            submit(LATENTS, C, guidance_skale=1.0)


def test_seeds_are_given_by_the_client() -> None:
    seeds = iter([11, 2**64 - 1])
    with (
        Streaming() as server,
        TeacherClient(server.address, new_seed=lambda: next(seeds)) as client,
    ):
        assert client.submit(LATENTS, C).result(5).seed == 11
        assert client.submit(LATENTS, C, seed=0).result(5).seed == 0
        assert client.submit(LATENTS, C).result(5).seed == 2**64 - 1
    with Streaming() as server, connect(server) as client:
        drawn = {client.submit(LATENTS, C).result(5).seed for _ in range(4)}
        assert len(drawn) == 4


def test_arrays_are_copied_before_submit_returns() -> None:
    values = np.ones((2, 3), np.float32)
    with Streaming() as server, connect(server) as client:
        coming = client.submit(values, C)
        values[:] = np.nan
        coming.result(5)
        assert server.asked[0].estimate.latents == encode_tensor(np.ones((2, 3), np.float32))


def test_what_cannot_be_sent_is_raised_at_once_the_rest_by_the_future() -> None:
    def on_stream(message: pb.StreamGradientsRequest) -> Answer:
        bad = message.estimate.seed == 1
        return error(message, Reason.NON_FINITE_RESULT) if bad else answer(message)

    with Streaming(on_stream) as server, connect(server) as client:
        with pytest.raises(InvalidRequestError, match="timesteps"):
            client.submit(LATENTS, C, signs=[1])
        assert server.asked == []
        coming = [client.submit(LATENTS, C, seed=seed) for seed in range(3)]
        with pytest.raises(InternalError) as caught:
            coming[1].result(5)
        assert caught.value.reason == "NON_FINITE_RESULT"
        assert [coming[0].result(5).seed, coming[2].result(5).seed] == [0, 2]
        assert server.streams == 1, "the stream goes on"


@pytest.mark.parametrize("whose", ["client", "server"])
def test_submit_waits_for_a_place(whose: str) -> None:
    limit, own = (2, 32) if whose == "server" else (0, 2)
    with Streaming(Held(), limit) as server, connect(server, max_in_flight=own) as client:
        coming = [client.submit(LATENTS, C, seed=seed) for seed in range(2)]
        late: list[Any] = []
        thread = threading.Thread(target=lambda: late.append(client.submit(LATENTS, C, seed=2)))
        thread.start()
        until(lambda: len(server.asked) == 2)
        thread.join(0.2)
        assert thread.is_alive() and late == []
        coming[0].cancel()  # gives its place up
        thread.join(5)
        assert not thread.is_alive()
        until(lambda: len(server.asked) == 3)
        with pytest.raises(DeadlineExceededError):
            client.submit(LATENTS, C, timeout=0.1)
        assert len(server.asked) == 3, "the deadline passed for want of a place"


def test_a_cancelled_future_cancels_its_request() -> None:
    with Streaming(Held()) as server, connect(server) as client:
        first, second = [client.submit(LATENTS, C, seed=seed) for seed in range(2)]
        until(lambda: len(server.asked) == 2)
        assert first.cancel()
        until(lambda: server.cancelled_ids == [server.asked[0].id])
        client.submit(LATENTS, C, seed=999).result(5)
        assert second.result(5).seed == 1
        with pytest.raises(CancelledError):
            first.result(5)
        until(lambda: running(client) == 0)


def test_a_deadline_ends_one_request_and_is_told_to_the_server() -> None:
    with Streaming(Held()) as server, connect(server) as client:
        slow = client.submit(LATENTS, C, seed=1)
        until(lambda: len(server.asked) == 1)
        seconds = 0.0
        for seconds in DEADLINES:
            with pytest.raises(DeadlineExceededError, match=f"EstimateGradient within {seconds} s"):
                client.submit(LATENTS, C, seed=2, timeout=seconds).result(20)
            if len(server.asked) > 1:
                break
        until(lambda: {each.id for each in server.asked[1:]} <= set(server.cancelled_ids))
        assert server.asked[0].id not in server.cancelled_ids
        assert 0.0 < server.asked[-1].timeout_seconds <= seconds
        assert not slow.done()


def test_the_servers_word_on_a_deadline_is_passed_on() -> None:
    with (
        Streaming(lambda m: error(m, Reason.DEADLINE_EXPIRED)) as server,
        connect(server) as client,
    ):
        with pytest.raises(DeadlineExceededError) as caught:
            client.submit(LATENTS, C).result(5)
        assert caught.value.reason == "DEADLINE_EXPIRED"


def test_close_ends_what_is_in_flight() -> None:
    with Streaming(Held()) as server:
        client = connect(server)
        coming = [client.submit(LATENTS, C) for _ in range(3)]
        until(lambda: len(server.asked) == 3)
        client.close()
        for future in coming:
            with pytest.raises(ClientClosedError):
                future.result(5)
        with pytest.raises(ClientClosedError):
            client.submit(LATENTS, C)
        assert server.cancelled.wait(5)


def test_close_right_after_submit_on_asyncio() -> None:
    """The request has not even begun."""

    async def main(server: Streaming) -> None:
        client = AsyncTeacherClient(server.address)
        await (await client.submit(LATENTS, C, seed=999))
        coming = await client.submit(LATENTS, C)
        await client.close()
        with pytest.raises(ClientClosedError):
            await coming
        forgotten = await client.submit(LATENTS, C)  # fails, and nobody asks
        with pytest.raises(ClientClosedError):
            await forgotten

    with Streaming(Held()) as server:
        asyncio.run(main(server))


def test_a_forgotten_future_leaves_nothing_behind() -> None:
    with Streaming() as server, connect(server) as client:
        coming = client.submit(LATENTS, C)
        watch = weakref.ref(coming)
        del coming
        until(lambda: len(server.asked) == 1 and running(client) == 0)
        stream = client._client._pipeline._stream
        assert stream is not None and stream._waiting == {} and stream._outbox.empty()
        until(lambda: gc.collect() >= 0 and watch() is None)


def test_a_client_that_is_dropped_stays_open_for_what_it_has_submitted() -> None:
    with Streaming(Held()) as server:
        client = connect(server)
        transport = client._client._transport
        coming = client.submit(LATENTS, C, seed=1)
        until(lambda: len(server.asked) == 1)
        last = client.submit(LATENTS, C, seed=999)
        del client
        gc.collect()
        assert last.result(5).seed == 999 and coming.result(5).seed == 1
        del coming, last
        until(lambda: gc.collect() >= 0 and transport._closed)


def breaking(times: int, refusal: Refusal = DOWN) -> Callable[[Any], Answer | Sequence[Answer]]:
    """The stream breaks with every fourth request that comes, so many times, none answered."""
    seen = [0]

    def on_stream(message: pb.StreamGradientsRequest) -> Answer | Sequence[Answer]:
        seen[0] += 1
        if seen[0] > 4 * times:
            return answer(message)
        return refusal if seen[0] % 4 == 0 else []

    return on_stream


def test_what_a_broken_stream_left_unanswered_is_sent_again_just_as_it_was() -> None:
    with Streaming(breaking(2)) as server, connect(server) as client:
        coming = [client.submit(LATENTS, C) for _ in range(4)]
        seeds = [future.result(5).seed for future in coming]
        assert len(set(seeds)) == 4
        assert server.streams == 3
        by_attempt = [server.asked[i : i + 4] for i in (0, 4, 8)]
        for attempt in by_attempt:
            assert sorted(message.estimate.seed for message in attempt) == sorted(seeds)
        requests = {message.estimate.SerializeToString() for message in server.asked}
        assert len(requests) == 4


def test_a_stream_that_only_breaks_is_given_up() -> None:
    with Streaming(lambda _: DOWN) as server, connect(server, retry_attempts=3) as client:
        with pytest.raises(UnavailableError, match="gone away"):
            client.submit(LATENTS, C).result(5)
        assert len(server.asked) == 3


def test_a_stream_that_ends_well_but_early_is_a_broken_one() -> None:
    with Streaming() as server, connect(server) as client:
        client.submit(LATENTS, C).result(5)
        stream = client._client._pipeline._stream
        assert stream is not None
        stream._take = lambda response: stream._end(UnavailableError("ended"))
        assert client.submit(LATENTS, C, seed=3).result(5).seed == 3
        assert server.streams == 2


@pytest.mark.parametrize("reason", [Reason.QUEUE_FULL, Reason.DRAINING])
def test_a_refusal_on_the_stream_is_retried_when_the_server_says(reason: Reason) -> None:
    refused: list[float] = []

    def on_stream(message: pb.StreamGradientsRequest) -> Answer:
        if not refused:
            refused.append(time.monotonic())
            return error(message, reason, retry_delay_seconds=0.3)
        return answer(message)

    with Streaming(on_stream) as server, connect(server) as client:
        coming = client.submit(LATENTS, C)
        coming.result(5)
        calls = [call.moment for call in server.calls if call.method == STREAM]
        assert len(calls) == 2 and calls[1] - calls[0] >= 0.3
        assert server.asked[0].id != server.asked[1].id
        assert server.asked[0].estimate == server.asked[1].estimate


def test_a_refusal_without_a_delay_is_final() -> None:
    with Streaming(lambda m: error(m, Reason.QUEUE_FULL)) as server, connect(server) as client:
        with pytest.raises(ResourceExhaustedError):
            client.submit(LATENTS, C).result(5)
        assert len(server.asked) == 1


def test_a_server_without_streams_gets_calls() -> None:
    refusal = Refusal(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    with Streaming(lambda _: refusal) as server, connect(server) as client:
        for seed in range(3):
            assert client.submit(LATENTS, C, seed=seed).result(5).seed == seed
        assert server.streams == 1, "asked for once"
        assert server.count("EstimateGradient") == 3


def test_an_answer_too_large_for_the_client_fails_its_request_alone() -> None:
    """gRPC ends the whole stream with it; then each gets its verdict from a call of its own."""
    held = Held()

    def on_stream(message: pb.StreamGradientsRequest) -> Answer | Sequence[Answer]:
        if message.HasField("estimate") and message.estimate.seed == 7:
            reply = answer(message)
            reply.estimate.teacher_digest = "x" * 100_000
            return reply
        return held(message)

    def reply(method: str, request: Any) -> Answer | Sequence[Answer]:
        if method == "EstimateGradient" and request.seed == 7:
            return pb.EstimateGradientResponse(teacher_digest="x" * 100_000)
        return server._reply(method, request)

    with Streaming(on_stream) as server, connect(server, max_message_bytes=50_000) as client:
        server.answer = reply
        small = [client.submit(LATENTS, C, seed=seed) for seed in range(3)]
        large = client.submit(LATENTS, C, seed=7)
        with pytest.raises(MessageTooLargeError):
            large.result(5)
        assert [future.result(5).seed for future in small] == [0, 1, 2]


def test_a_request_over_the_limit_never_leaves_and_the_rest_goes_on() -> None:
    with Streaming() as server, connect(server, max_message_bytes=10_000) as client:
        large = client.submit(np.zeros((1000, 3), np.float32), C)
        with pytest.raises(MessageTooLargeError) as caught:
            large.result(5)
        assert "latents" in caught.value.violations[0].field
        client.submit(LATENTS, C).result(5)
        assert len(server.asked) == 1


def test_an_unknown_status_code_is_a_carv_error() -> None:
    def on_stream(message: pb.StreamGradientsRequest) -> Answer:
        reply = pb.StreamGradientsResponse(id=message.id)
        reply.error.code = 77
        return reply

    with Streaming(on_stream) as server, connect(server) as client:
        with pytest.raises(CarvError) as caught:
            client.submit(LATENTS, C).result(5)
        assert caught.value.code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("most", [0, -1])
def test_in_flight_must_allow_something(most: int) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        ClientConfig(max_in_flight=most)
