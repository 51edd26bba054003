"""What a server holds of messages that it refuses: never more than the limit and 20 MB."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.server.wire import health_stub, path, send
from tests.support.bare_http2 import bomb, post
from tests.support.process import ServerProcess
from tests.support.timed import arguments, handle_of, timed_request

LIMIT = 16 << 20
SLACK = 20e6
TARGET = path("EstimateGradient")
GZIP = [("grpc-encoding", "gzip")]
EXHAUSTED, INVALID = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]), "3"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    given = arguments(tmp_path_factory.mktemp("simulated"), 0.0, 0.0, 8)
    with ServerProcess([*given, "--max-message-mib", "16"]) as started:
        with grpc.insecure_channel(started.address) as channel:
            handle = handle_of(channel)
            for seed in range(20):  # what every server comes to hold
                send(channel, "EstimateGradient", timed_request(handle, 8, seed))
        yield started


def _resident(server: ServerProcess) -> int:
    fields = Path(f"/proc/{server.process.pid}/statm").read_text().split()
    return 4096 * int(fields[1])


@contextmanager
def _rise(server: ServerProcess) -> Iterator[Callable[[], float]]:
    """Of resident memory inside the block, at most, in bytes."""
    before = highest = _resident(server)
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, _resident(server))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: highest - before
    finally:
        over.set()
        thread.join()


def _lives(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        reply = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert send(channel, "EstimateGradient", timed_request(handle_of(channel), 2))


def test_a_gzip_bomb_is_refused_before_it_is_whole(server: ServerProcess) -> None:
    """1 GiB of zeros in a message of 1 MB. Broken by a limit of gRPC's own far above ours (a factor
    of 2 holds 50 MB), by a limit of -1, and by a grpcio older than 1.84 (1.1 GB)."""
    message = bomb(1024)
    assert len(message) < LIMIT / 8
    for _ in range(3):
        with _rise(server) as rise:
            found = post(server.address, TARGET, message, compressed=True, headers=GZIP)
            time.sleep(0.1)
        assert found["grpc-status"] == EXHAUSTED, found
        assert rise() < LIMIT + SLACK
    _lives(server)


@pytest.mark.parametrize("factor", [2, 16])
def test_an_oversize_message_is_not_taken_in(server: ServerProcess, factor: int) -> None:
    """Broken by ``grpc.max_receive_message_length`` -1."""
    message = bytes(factor * LIMIT)
    with _rise(server) as rise:
        found = post(server.address, TARGET, message)
    assert found["grpc-status"] == EXHAUSTED
    assert rise() < LIMIT + SLACK
    _lives(server)


@pytest.mark.parametrize(("size", "code"), [(LIMIT + 1, EXHAUSTED), (LIMIT, INVALID)])
def test_refused_messages_do_not_pile_up(server: ServerProcess, size: int, code: str) -> None:
    """Messages that reach the handler and fail there: one just above the limit, with a rich
    status, and one at the limit that does not parse. Broken by taking ``released`` from the
    handlers: gRPC keeps every one of them until the garbage collector comes by."""
    message = b"\xff" * size

    def refuse() -> None:
        found = post(server.address, TARGET, message)
        assert found["grpc-status"] == code and "grpc-status-details-bin" in found

    for _ in range(8):  # buffers of each of gRPC's threads
        refuse()
    begun = _resident(server)
    for _ in range(12):
        refuse()
    time.sleep(0.2)
    assert _resident(server) - begun < LIMIT + SLACK
    _lives(server)


def test_a_compressed_request_is_served(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        reply = send(channel, "EstimateGradient", timed_request(handle_of(channel), 2))
        assert reply
