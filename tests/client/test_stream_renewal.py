"""Streams are opened anew now and then, so that a connection to which the server takes no new calls
can end; nothing is lost or sent twice for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from carv.v1 import teacher_service_pb2 as pb
from carv_client import TeacherClient
from tests.client.scripted_server import Answer
from tests.client.submitted import LATENTS, C, Streaming, answer, connect, until


@pytest.fixture(autouse=True)
def _short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_client._pipeline._STREAM_SECONDS", 0.25)


def first_waits(gate: threading.Event) -> Callable[[pb.StreamGradientsRequest], Sequence[Answer]]:
    """Seed 0 holds up its stream until the gate opens."""

    def on_stream(message: pb.StreamGradientsRequest) -> Sequence[Answer]:
        if message.HasField("cancel"):
            return []
        return [gate, answer(message)] if message.estimate.seed == 0 else [answer(message)]

    return on_stream


def open_streams(client: TeacherClient) -> int:
    return len(client._client._pipeline._streams)


def is_retired(client: TeacherClient) -> bool:
    """Whether the stream that was opened last is for no new requests."""
    stream = client._client._pipeline._stream
    return stream is not None and stream.retired


def test_a_new_stream_takes_what_comes_and_the_old_one_ends_with_its_last_answer() -> None:
    """Breaks with: a stream that never retires (one stream), one that is closed when it retires
    (seed 0 is asked for twice), or one that does not end (open streams remain)."""
    gate = threading.Event()
    with Streaming(first_waits(gate)) as server, connect(server) as client:
        slow = client.submit(LATENTS, C, seed=0)
        until(lambda: len(server.asked) == 1 and is_retired(client))
        assert client.submit(LATENTS, C, seed=1).result(5).seed == 1
        assert not slow.done() and server.streams == 2
        gate.set()
        assert slow.result(5).seed == 0
        assert [message.estimate.seed for message in server.asked] == [0, 1]
        until(lambda: open_streams(client) == 0)
        assert server.streams == 2, "none is kept open for nothing"


def test_what_is_cancelled_on_a_retired_stream_is_told_to_the_server() -> None:
    """Breaks with: a stream that half-closes when it retires."""
    gate = threading.Event()
    with Streaming(first_waits(gate)) as server, connect(server) as client:
        slow = client.submit(LATENTS, C, seed=0)
        until(lambda: len(server.asked) == 1 and is_retired(client))
        assert slow.cancel()
        gate.set()  # the server reads on
        until(lambda: server.cancelled_ids == [server.asked[0].id])
        until(lambda: open_streams(client) == 0)
