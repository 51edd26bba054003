"""Streams are opened anew now and then, so that a connection to which the server takes no new calls
can end; nothing is lost or sent twice for it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from carv.v1 import teacher_service_pb2 as pb
from carv_client import TeacherClient
from tests.client.scripted_server import Answer
from tests.client.submitted import LATENTS, C, Streaming, answer, connect, until

SECONDS = 0.25


@pytest.fixture(autouse=True)
def _short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_client._pipeline._STREAM_SECONDS", SECONDS)


def first_is_slow(message: pb.StreamGradientsRequest) -> Sequence[Answer]:
    """Seed 0 holds up its stream for longer than streams live."""
    if message.HasField("cancel"):
        return []
    return [6 * SECONDS, answer(message)] if message.estimate.seed == 0 else [answer(message)]


def open_streams(client: TeacherClient) -> int:
    return len(client._client._pipeline._streams)


def test_a_new_stream_takes_what_comes_and_the_old_one_ends_with_its_last_answer() -> None:
    """Breaks with: a stream that never retires (one stream), one that is closed when it retires
    (seed 0 is asked for twice), or one that does not end (open streams remain)."""
    with Streaming(first_is_slow) as server, connect(server) as client:
        slow = client.submit(LATENTS, C, seed=0)
        time.sleep(2 * SECONDS)
        assert client.submit(LATENTS, C, seed=1).result(5).seed == 1
        assert not slow.done() and server.streams == 2
        assert slow.result(5).seed == 0
        assert [message.estimate.seed for message in server.asked] == [0, 1]
        until(lambda: open_streams(client) == 0)
        assert server.streams == 2, "none is kept open for nothing"


def test_what_is_cancelled_on_a_retired_stream_is_told_to_the_server() -> None:
    """Breaks with: a stream that half-closes when it retires."""
    with Streaming(first_is_slow) as server, connect(server) as client:
        slow = client.submit(LATENTS, C, seed=0)
        until(lambda: len(server.asked) == 1)
        time.sleep(2 * SECONDS)
        assert slow.cancel()
        until(lambda: server.cancelled_ids == [server.asked[0].id])
        until(lambda: open_streams(client) == 0)
