"""A server as a process: never ready before it is warm, gone soon after SIGTERM, whenever that
comes, and nothing lost that was in flight."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from carv.v1 import teacher_service_pb2 as pb
from carv_server.demo.process import free_address
from tests.server.wire import health_stub, path, send
from tests.support.process import ServerProcess
from tests.support.timed import arguments, handle_of, timed_request

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
BUDGET = 8
# Reconnect quickly to a server that is not there yet.
QUICK = [(f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max")]


@contextmanager
def _started(address: str, given: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that need not become ready, and is ended after two minutes: who reads what it
    says does not wait for ever."""
    process = subprocess.Popen(
        [sys.executable, "-m", "carv_server", "serve", "--address", address, *given],
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(120.0, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def _status(stub: Any) -> int | None:
    """Of the whole server; None where nothing answers."""
    try:
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status
    except grpc.RpcError:
        return None


def _until_status(stub: Any, status: int, process: subprocess.Popen[str]) -> list[int]:
    """Those that it had until then."""
    seen: list[int] = []
    deadline = time.monotonic() + 120.0
    while (found := _status(stub)) != status:
        if found is not None:
            seen.append(found)
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return seen


def _logged_at(log: str, words: str) -> float:
    """When the one line with such words was logged."""
    (line,) = (line for line in log.splitlines() if words in line)
    return datetime.fromisoformat(line[: len("2000-01-01 00:00:00,000")]).timestamp()


def test_never_serving_before_it_is_warm(tmp_path: Path) -> None:
    """Its warm-up is two forwards of 0.6 s, of one row and of a full microbatch; by the clock of
    its own log, so that it does not matter how fast we see what. Broken by setting health to
    SERVING before ``_warm_up`` in ``RunningServer.__aenter__``."""
    address, launch = free_address(), 0.6
    with (
        _started(address, arguments(tmp_path, launch, 0.0, BUDGET)) as process,
        grpc.insecure_channel(address, options=QUICK) as channel,
    ):
        stub = health_stub(channel)
        seen = _until_status(stub, SERVING, process)
        ready = time.time()
        assert set(seen) <= {NOT_SERVING}
        send(channel, "EstimateGradient", timed_request(handle_of(channel), 1))
        process.terminate()
        _, log = process.communicate(timeout=60)
    loaded = _logged_at(log, "teacher simulated: simulated")
    warm = _logged_at(log, "warmed up")
    assert loaded + 2 * launch <= warm + 0.001 and warm <= ready + 0.001  # it rounds


def test_sigterm_lets_sixteen_in_flight_finish_tells_the_watch_and_ends(tmp_path: Path) -> None:
    """Sixteen requests of 12 rows, some two seconds of work, and an open Watch. The process ends
    soon after the last answer. Broken by ``stop`` without waiting for what is in flight (calls
    fail), by waiting for the Watch (30 s), and by not setting health in ``drain`` (no
    NOT_SERVING)."""
    with (
        ServerProcess(arguments(tmp_path, 0.02, 0.01, BUDGET)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        handle = handle_of(channel)
        statuses = iter(health_stub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert next(statuses).status == SERVING
        method = channel.unary_unary(path("EstimateGradient"))
        calls = [method.future(timed_request(handle, 12, i), timeout=60) for i in range(16)]
        ended: list[float] = []
        for call in calls:
            call.add_done_callback(lambda _: ended.append(time.monotonic()))
        send(channel, "ListTeachers", b"")  # behind them on the connection
        time.sleep(0.3)
        assert not any(call.done() for call in calls[8:]), "too short to show anything"
        server.process.send_signal(signal.SIGTERM)
        assert next(statuses).status == NOT_SERVING
        replies = [pb.EstimateGradientResponse.FromString(call.result(60)) for call in calls]
        assert [reply.draws_spent for reply in replies] == [12] * 16
        assert server.process.wait(60) == 0
        assert time.monotonic() - max(ended) < 10.0, "drain_seconds is 30, and a Watch was open"
    assert "Traceback" not in server.log


def _gone(process: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, "a signal of its own is a clean stop"
    assert time.monotonic() - begun < 10.0, "its forward takes a minute"
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_sigterm_while_loading_ends_it_at_once(tmp_path: Path) -> None:
    """Ahead of any event loop, in a forward of a minute that measures the teacher. Broken by
    removing ``ended_by_signals`` from the command: the default action gives code -15, and where
    the process is PID 1 there is none."""
    given = arguments(tmp_path, 60.0, 0.0, BUDGET)[:-2]  # the budget is to be measured
    with _started("127.0.0.1:0", given) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "teacher simulated: simulated" in line:
                break
        else:
            pytest.fail("it never said that it loads")
        time.sleep(0.2)  # into the forward
        _gone(process)


def test_sigterm_while_warming_up_ends_it_at_once(tmp_path: Path) -> None:
    """Forwards of a minute. Broken by awaiting the server's start alone in
    ``serve_until_signalled``, and by waiting for the device's thread without a bound."""
    address = free_address()
    with (
        _started(address, arguments(tmp_path, 60.0, 0.0, BUDGET)) as process,
        grpc.insecure_channel(address, options=QUICK) as channel,
    ):
        _until_status(health_stub(channel), NOT_SERVING, process)
        time.sleep(0.2)  # into the forward
        _gone(process)
