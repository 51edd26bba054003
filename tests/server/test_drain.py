"""The end of a server: signals drain it, a kill is noticed, a second signal hurries it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from carv.v1 import teacher_service_pb2 as pb
from carv_client import ClientConfig, TeacherClient, UnavailableError
from tests.server.wire import Failure, fails, failure_of, health_stub, send
from tests.support.process import ServerProcess
from tests.support.timed import SHAPE, arguments, handle_of, timed_request

SERVERS = ("terminated", "interrupted", "killed", "hurried")


@dataclass(frozen=True)
class Served:
    server: ServerProcess
    channel: grpc.Channel
    handle: str


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    """One for each ending, started side by side. Fifty evaluations last for a second on any
    machine: there is one in each microbatch, of 20 ms."""
    given = arguments(tmp_path_factory.mktemp("simulated"), 0.02, 0.0, 1)
    with ExitStack() as stack:
        started = {name: ServerProcess(given) for name in SERVERS}
        for server in started.values():
            stack.push(server)  # all start at once, and all are ended even if one fails
        for server in started.values():
            server.__enter__()
        yield started


@pytest.fixture
def served(request: pytest.FixtureRequest, servers: dict[str, ServerProcess]) -> Iterator[Served]:
    server = servers[request.param]
    with grpc.insecure_channel(server.address) as channel:
        yield Served(server, channel, handle_of(channel))


def _long(served: Served, draws: int) -> Future[bytes | Failure]:
    """A request in flight."""
    request = timed_request(served.handle, draws)
    threads = ThreadPoolExecutor(1)

    def work() -> bytes | Failure:
        try:
            return send(served.channel, "EstimateGradient", request)
        except grpc.RpcError as error:
            return failure_of(error)

    future = threads.submit(work)
    threads.shutdown(wait=False)
    stub = pb.GetTeacherRequest()
    while not future.done():  # evaluation_seconds is 0 until the first microbatch has run
        reply = send(served.channel, "GetTeacher", stub)
        if pb.GetTeacherResponse.FromString(reply).teacher.evaluation_seconds > 0:
            return future
        time.sleep(0.01)
    raise AssertionError(f"it ended at once: {future.result()!r}")


@pytest.mark.parametrize(
    ("served", "number"),
    [("terminated", signal.SIGTERM), ("interrupted", signal.SIGINT)],
    indirect=["served"],
)
def test_a_signal_lets_requests_in_flight_finish_and_refuses_new_ones(
    served: Served, number: signal.Signals
) -> None:
    watch = health_stub(served.channel).Watch(health_pb2.HealthCheckRequest())
    statuses = iter(watch)
    assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
    in_flight = _long(served, draws=125)
    assert not in_flight.done()

    served.server.process.send_signal(number)

    assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
    refused = fails(served.channel, "ListTeachers", b"")
    assert not in_flight.done(), "the request was too short to show anything"
    assert refused.code == grpc.StatusCode.UNAVAILABLE
    assert (refused.reason, refused.domain) == ("DRAINING", "carv")
    reply = in_flight.result(60)
    finished = time.perf_counter()
    assert isinstance(reply, bytes), reply
    assert pb.EstimateGradientResponse.FromString(reply).draws_spent == 125
    assert served.server.process.wait(30) == 0
    assert time.perf_counter() - finished < 10.0, "drain_seconds is 30, and a Watch was open"
    assert "Traceback" not in served.server.log


@pytest.mark.parametrize("served", ["killed"], indirect=True)
def test_a_kill_is_unavailable_and_not_a_hang(served: Served) -> None:
    config = ClientConfig(address=served.server.address, retry_attempts=2)
    caught: list[BaseException] = []
    with TeacherClient(config) as client:
        conditioning = client.create_conditioning(unconditional=True)
        latents = np.zeros((1, *SHAPE), np.float32)

        def work() -> None:
            try:
                client.estimate_gradient(latents, conditioning, draws=1024, guidance_scale=1.0)
            except UnavailableError as error:
                caught.append(error)

        in_flight = _long(served, draws=1024)
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.3)
        served.server.process.kill()
        killed = time.perf_counter()
        thread.join(30)
        failure = in_flight.result(30)
        assert time.perf_counter() - killed < 10.0
    assert isinstance(failure, Failure) and failure.code == grpc.StatusCode.UNAVAILABLE
    assert len(caught) == 1 and isinstance(caught[0], ConnectionError)


@pytest.mark.parametrize("served", ["hurried"], indirect=True)
def test_a_second_signal_ends_the_drain(served: Served) -> None:
    in_flight = _long(served, draws=1024)
    served.server.process.terminate()
    assert fails(served.channel, "ListTeachers", b"").reason == "DRAINING"
    assert not in_flight.done()
    served.server.process.terminate()
    signalled = time.perf_counter()
    assert served.server.process.wait(30) == 0
    assert time.perf_counter() - signalled < 10.0, "drain_seconds is 30"
    failure = in_flight.result(30)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert "Traceback" not in served.server.log
