"""Drivers, meters and the bare model, against real small servers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from carv.v1 import teacher_service_pb2 as pb
from carv_server.bench.load import bare
from carv_server.bench.load.bare import Bare, best_rate, measure_bare
from carv_server.bench.load.flow import Load, Observed, decode_load, decode_observed, encode
from carv_server.bench.load.folders import write_simulated
from carv_server.bench.load.measure import DriverFailed, measure
from carv_server.bench.load.processes import (
    cpu_seconds,
    descendants,
    machine_cpu_seconds,
    marked,
    stop_all,
)
from carv_server.bench.load.requests import (
    create_handle,
    estimate_payload,
    service_target,
    stream_payload,
    stream_target,
)
from carv_server.bench.load.rounds import over_rounds
from carv_server.bench.load.wire import CallFailed, Target, call_once, connect
from carv_server.bench.service.echo import echo_target, running_echo
from tests.support.process import ServerProcess

LAUNCH, ROW = 0.02, 0.005
SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = write_simulated(tmp_path_factory.mktemp("device"), SHAPE, LAUNCH, ROW)
    with ServerProcess(["--teacher", f"sim={folder}", "--evaluation-budget", "4"]) as server:
        yield server


def payload_file(address: str, folder: Path, draws: int = 1) -> str:
    handle = create_handle(address, None)
    latents = np.zeros((1, *SHAPE), np.float32)
    path = folder / f"payload-{draws}"
    path.write_bytes(estimate_payload(latents, [handle], [1.0], draws))
    return str(path)


def target(server: ServerProcess) -> Target:
    return service_target(server.address, "EstimateGradient")


def test_a_closed_loop_counts_what_the_device_allows(device: ServerProcess, tmp_path: Path) -> None:
    """One client with one row a request: never faster than the device, never without it."""
    files = {"request": payload_file(device.address, tmp_path)}
    load = Load(target(device), files, clients=1, seconds=1.0, warm_seconds=0.2)
    for _ in range(3):
        observed = measure([load], lambda: [device.process.pid]).first
        assert 0 < observed.requests <= observed.seconds / (LAUNCH + ROW) + 1
        assert observed.quantile(0.0) >= LAUNCH + ROW
        assert not observed.failures
        # A client is always waiting for one answer: latencies fill the window, but for its ends.
        filled, longest = sum(observed.latencies["request"]), observed.quantile(1.0)
        assert filled <= observed.seconds + longest
        if filled >= observed.seconds - 3 * longest:
            break
    else:  # a machine that halts at the end of one window does not at that of each
        pytest.fail("part of every window is in no latency")


def test_labels_are_dealt_at_random_and_kept_apart(device: ServerProcess, tmp_path: Path) -> None:
    """A request of K = 8 needs two microbatches of four, one of K = 1 may share one."""
    files = {
        "small": payload_file(device.address, tmp_path, 1),
        "large": payload_file(device.address, tmp_path, 8),
    }
    load = Load(target(device), files, clients=2, seconds=2.0, warm_seconds=0.2)
    observed = measure([load], lambda: [device.process.pid]).first
    assert observed.latencies["small"] and observed.latencies["large"]
    assert observed.quantile(0.0, "large") >= 2 * (LAUNCH + 4 * ROW)
    assert observed.quantile(0.0, "small") < observed.quantile(0.0, "large")
    assert np.isnan(observed.quantile(0.5, "no such label"))


def test_an_open_loop_offers_its_rate_and_counts_from_when_it_was_due(
    device: ServerProcess, tmp_path: Path
) -> None:
    """Forty a second for two seconds: a Poisson count within five deviations. At four times what
    the device can do, the queue and so the latency of the last grows to about half a second for
    each second of the run, which a driver that only waited for answers would not see."""
    files = {"request": payload_file(device.address, tmp_path)}
    load = Load(target(device), files, clients=4, seconds=2.0, warm_seconds=0.0, rate=40.0, seed=1)
    observed = measure([load], lambda: [device.process.pid]).first
    assert abs(observed.requests - 80) < 5 * 80**0.5
    best = 4 / (LAUNCH + 4 * ROW)
    flood = Load(
        target(device), files, clients=4, seconds=1.0, warm_seconds=0.0, rate=4 * best, seed=1
    )
    flooded = measure([flood], lambda: [device.process.pid]).first
    assert flooded.quantile(1.0) > 1.0


def test_failures_are_counted_by_what_they_say(device: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "nonsense"
    path.write_bytes(b"\xff\xff")
    load = Load(target(device), {"x": str(path)}, clients=8, seconds=1.0, warm_seconds=0.1)
    metered = measure([load], lambda: descendants(device.process.pid))
    observed = metered.first
    assert observed.requests == 0
    assert all("INVALID_ARGUMENT" in said for said in observed.failures)
    assert sum(observed.failures.values()) > 1
    # Hundreds of refusals: many ticks of the server's clock, of 10 ms each.
    assert observed.client_cpu_seconds > 0
    assert 0 < metered.server_cpu_seconds < 2 * observed.seconds * (os.cpu_count() or 1)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    nowhere = Target("http", "127.0.0.1:9", "/")
    with pytest.raises(DriverFailed, match="Connect"):
        measure([Load(nowhere, {"x": str(path)}, 1, 0.1)], list)
    with pytest.raises(CallFailed, match="UNAVAILABLE"):
        asyncio.run(call_once(Target("grpc", "127.0.0.1:9", "/a.B/C"), b"", 5.0))


def test_one_request_after_another_on_a_stream(device: ServerProcess, tmp_path: Path) -> None:
    """Answers of the first and a later request; then one that the server refuses."""
    estimate = payload_file(device.address, tmp_path)
    whole = stream_payload(Path(estimate).read_bytes())

    async def ask() -> None:
        caller = await connect(stream_target(device.address))
        for _ in range(2):
            answer = pb.StreamGradientsResponse.FromString(await caller.call(whole))
            assert answer.estimate.draws_spent > 0
        with pytest.raises(CallFailed, match="INVALID_ARGUMENT: action"):
            await caller.call(pb.StreamGradientsRequest(id=1).SerializeToString())
        with pytest.raises(CallFailed, match="INVALID_ARGUMENT: the bytes are not"):
            await caller.call(b"\xff\xff")
        await caller.call(whole)  # on another call: that one was over
        await caller.close()

    asyncio.run(ask())


def test_the_echo_server_echoes() -> None:
    with running_echo() as (address, pid):
        assert asyncio.run(call_once(echo_target(address), b"as it is", 5.0)) == b"as it is"
        assert pid in descendants(os.getpid())


def test_http_over_one_connection() -> None:
    """Two requests on one connection; then an error status."""

    async def serve_and_ask() -> None:
        connections, ended = 0, asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError:
                    break
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                body = await reader.readexactly(length)
                status = b"503 Busy" if body == b"fail" else b"200 OK"
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
                )
            writer.close()
            await writer.wait_closed()
            ended.set()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            caller = await connect(Target("http", f"127.0.0.1:{port}", "/x"))
            assert await caller.call(b"one") == b"one"
            assert await caller.call(b"other" * 50_000) == b"other" * 50_000
            assert connections == 1
            with pytest.raises(CallFailed, match="HTTP 503: b'fail'"):
                await caller.call(b"fail")
            await caller.close()
            await ended.wait()

    asyncio.run(serve_and_ask())


def test_loads_and_observations_survive_the_way_between_processes() -> None:
    load = Load(Target("grpc", "h:1", "/a"), {"x": "f"}, 2, 1.5, rate=3.0, seed=4)
    assert decode_load(encode(load)) == load
    seen = Observed(2.0, {"a": [0.1, 0.3], "b": [0.2]}, {"X": 2}, 0.5)
    assert decode_observed(encode(seen)) == seen
    assert seen.rate == 1.5 and seen.quantile(0.5) == 0.2 and seen.quantile(1.0, "b") == 0.2


def test_processor_time_of_a_family() -> None:
    """A child that spins half a second of processor time, under a shell."""
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint('spun', flush=True)\ninput()"
    shell = subprocess.Popen(
        ["sh", "-c", f'"{sys.executable}" -c "{spin}"; true'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"CARV_TEST_MARK": "spinner"},
    )
    assert shell.stdout is not None and shell.stdout.readline() == b"spun\n"
    family = descendants(shell.pid)
    assert len(family) == 2 and sorted(family) == sorted(marked("CARV_TEST_MARK", "spinner"))
    # The interpreter's start and a tick of 10 ms for each process.
    assert 0.48 <= cpu_seconds(family) < 1.5
    shell.communicate(b"\n")
    assert cpu_seconds(family) == 0.0


def test_work_of_others_is_told_apart(
    device: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spinning process takes a good part of a core of a machine that has nobody but this one's
    children: what else runs here is no matter."""
    ours = "carv_server.bench.load.measure.machine_cpu_seconds"
    monkeypatch.setattr(ours, lambda: cpu_seconds(descendants(os.getpid())))
    spun: list[float] = []
    spin = "print('up', flush=True)\nwhile True: pass"
    spinner = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE)
    assert spinner.stdout is not None and spinner.stdout.readline() == b"up\n"
    try:
        files = {"request": payload_file(device.address, tmp_path)}
        load = Load(target(device), files, clients=1, seconds=1.0, warm_seconds=0.1)

        def server() -> list[int]:
            spun.append(cpu_seconds([spinner.pid]))
            return descendants(device.process.pid)

        machine = machine_cpu_seconds()
        metered = measure([load], server)
        machine = machine_cpu_seconds() - machine
    finally:
        spinner.kill()
        spinner.communicate()
    before, after = spun
    foreign = metered.foreign_cores * metered.first.seconds
    assert 0.2 < foreign <= after - before + 0.2
    assert machine > after - before - 0.1, "the real one has this and more"


def test_everything_marked_is_ended() -> None:
    """A program that ignores SIGTERM, and a child of it that has left its session."""
    stubborn = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", stubborn],
        stdout=subprocess.PIPE,
        env=os.environ | {"CARV_TEST_MARK": "stubborn"},
    )
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == b"up\n"
    assert len(marked("CARV_TEST_MARK", "stubborn")) == 2
    started = time.monotonic()
    stop_all(lambda: marked("CARV_TEST_MARK", "stubborn"), 0.2)
    assert time.monotonic() - started < 30, "sooner than they end by themselves"
    process.communicate()
    assert marked("CARV_TEST_MARK", "stubborn") == []


def test_the_bare_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Rows of one launch: never faster than the device, 8 / (0.02 + 8 * 0.005) = 133 a second."""
    folder = write_simulated(tmp_path, SHAPE, LAUNCH, ROW)
    found = measure_bare(Bare((1, 8), 0.2, teacher=str(folder)))
    assert found.size in (1, 8)
    assert 0 < found.rows_per_second <= 1.01 * found.size / (LAUNCH + found.size * ROW)
    assert found.seconds == pytest.approx(found.size / found.rows_per_second)


def test_a_rate_is_that_of_the_best_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only forwards move: of 10 ms up to two rows, of 40 ms above."""
    now = [0.0]
    monkeypatch.setattr(bare, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    calls: list[int] = []

    def forward(size: int) -> None:
        calls.append(size)
        now[0] += 0.01 if size <= 2 else 0.04

    found = best_rate(forward, (1, 2, 4), 0.1)
    assert (found.size, found.rows_per_second) == (2, pytest.approx(200.0))
    # Each once ahead of its sweep of 10 ms; then the best one for 0.1 s, as the clock's sum rounds.
    assert calls[:6] == [1, 1, 2, 2, 4, 4]
    assert calls[6:] in ([2] * 10, [2] * 11)


def test_over_rounds() -> None:
    assert over_rounds([1.0, 3.0]).value == 2.0
    assert over_rounds([1.0, 3.0]).error == pytest.approx(1.0)  # sqrt(2) / sqrt(2)
    one, none = over_rounds([2.0, float("nan")]), over_rounds([])
    assert one.value == 2.0 and np.isnan(one.error) and np.isnan(none.value)
