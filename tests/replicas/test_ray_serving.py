"""``carv serve --replicas ray``: its flags, its failures, and that it leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from carv_client import TeacherClient
from carv_server.cli import main
from tests.replicas.pools import simulated_folder
from tests.replicas.processes import alive, descendants
from tests.support.process import ServerProcess


def _serve(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        code = main(["serve", "--address", "127.0.0.1:0", "--replicas", "ray", *arguments])
    except SystemExit as error:  # argparse's way
        code = int(error.code or 0)
    return code, capsys.readouterr().err


FLAGS = [
    (["--min-replicas", "0"], "--min-replicas: 0 is below 1"),
    (["--min-replicas", "3", "--max-replicas", "2"], "must be min_replicas or more"),
    (["--gpus-per-replica", "1.5"], "1.5 is neither 0 to 1 nor a whole number"),
    (["--gpus-per-replica", "-1"], "-1.0 is below 0"),
    (["--gpus-per-replica", "some"], "'some' is not a number"),
    (["--cpus-per-replica", "0"], "0 is not above 0"),
    (["--cpus-per-replica", "nan"], "'nan' is not a number"),
    (["--device", "cuda:1"], "Ray chooses the GPU"),
    (["--device", "cpu", "--cuda-graphs"], "--cuda-graphs needs a CUDA device"),
    (["--replica-start-seconds", "0"], "0 is not above 0"),
    (["--ray-address", "ray://head:10001"], "expected host:port or 'auto'"),
    (["--ray-address", "nowhere"], "expected host:port or 'auto'"),
    (["--ray-address", "127.0.0.1:99999"], "cannot be reached"),
]


@pytest.mark.parametrize(("arguments", "said"), FLAGS)
def test_a_bad_flag_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, stderr = _serve(capsys, *arguments)
    assert code == 2 and said in stderr and "Traceback" not in stderr


def test_the_environment_says_the_same_as_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARV_MAX_REPLICAS", "0")
    assert "--max-replicas: 0 is below 1" in _serve(capsys)[1]
    monkeypatch.setenv("CARV_MAX_REPLICAS", "2")
    monkeypatch.setenv("CARV_MIN_REPLICAS", "3")
    assert "must be min_replicas or more" in _serve(capsys)[1]


def test_without_ray_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # makes the import fail
    code, stderr = _serve(capsys)
    assert code == 2 and "pip install 'carv[ray]'" in stderr and "Traceback" not in stderr


@pytest.fixture
def mute_address() -> Iterator[str]:
    """Of a listener that accepts and says nothing."""
    done = threading.Event()

    class Mute(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            done.wait(60)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mute) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        done.set()
        server.shutdown()


def test_an_address_where_nothing_listens_is_said_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun = time.monotonic()
    code, stderr = _serve(capsys, "--ray-address", "127.0.0.1:1")
    assert code == 2 and "--ray-address 127.0.0.1:1: cannot be reached" in stderr
    assert time.monotonic() - begun < 60.0, "Ray itself takes two minutes"


@pytest.mark.slow
def test_an_address_that_is_no_cluster_is_given_up_in_time(mute_address: str) -> None:
    """Ray itself takes two minutes, and then ends the process."""
    begun = time.monotonic()
    server = ServerProcess(["--replicas", "ray", "--ray-address", mute_address])
    with pytest.raises(RuntimeError, match="no answer as a Ray cluster within 20 s"):
        server.__enter__()
    server.__exit__(None, None, None)
    assert time.monotonic() - begun < 60.0  # imports and all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code", "agents_seconds"),
    # Two small agents of Ray's own first wait for the cluster that was killed with the server.
    [("terminate", 0, 20.0), ("kill", -signal.SIGKILL, 120.0)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_an_ended_server_leaves_no_process_behind(
    tmp_path: Path, end: str, code: int, agents_seconds: float
) -> None:
    folder = simulated_folder(tmp_path, 0.0, 0.001, 1, 4, 4)
    arguments = ["--teacher", f"simulated={folder}", "--replicas", "ray", "--min-replicas", "2"]
    with ServerProcess([*arguments, "--cpus-per-replica", "0.5"]) as server:
        with TeacherClient(server.address) as client:
            conditioning = client.create_conditioning(unconditional=True)
            x = np.zeros((1, 1, 4, 4), dtype=np.float32)
            estimate = client.estimate_gradient(x, conditioning, draws=200, guidance_scale=1.0)
            assert estimate.draws_spent == 200
        family = descendants(server.process.pid)
        names = {pid: Path(f"/proc/{pid}/cmdline").read_text().strip("\0") for pid in family}
        assert sum(name.startswith("ray::Worker") for name in names.values()) == 2
        agents = {pid for pid, name in names.items() if re.match(r"ray::.*Agent", name)}
        stop: Callable[[], None] = getattr(server.process, end)
        stop()
        assert server.process.wait(30) == code
        for pids, seconds in ((family - agents, 20.0), (agents, agents_seconds)):
            deadline = time.monotonic() + seconds
            while left := [names[pid] for pid in pids if alive(pid)]:
                assert time.monotonic() < deadline, left
                time.sleep(0.05)
    assert "Traceback" not in server.log
