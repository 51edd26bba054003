"""The peers' benchmark around its servers: formats, the common work, arguments, results."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf.wrappers_pb2 import BytesValue

from carv.tensors import decode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server import cli
from carv_server.bench.load.flow import Load
from carv_server.bench.load.folders import write_network
from carv_server.bench.load.measure import measure
from carv_server.bench.load.processes import marked
from carv_server.bench.load.wire import call_once
from carv_server.bench.peers import run as peers_run
from carv_server.bench.peers.codec import FORMATS
from carv_server.bench.peers.command import windows
from carv_server.bench.peers.contender import StartFailed, running_carv, running_peer
from carv_server.bench.peers.install import InstallFailed, install
from carv_server.bench.peers.registry import (
    CARV_WAYS,
    GRPC_ALONE,
    GRPC_WAYS,
    PEERS,
    SCRIPTS,
    Peer,
    columns,
    contenders,
)
from carv_server.bench.peers.run import Plan, measure_in_private
from carv_server.bench.peers.scripts.work import load_work, predict_bytes
from carv_server.bench.peers.workload import EVENT_SHAPE, Workload
from carv_server.teachers.registry import TeacherRegistration, load_teacher
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher


def test_the_simulated_device_is_that_of_the_server() -> None:
    stated = {"kind": "simulated", "event_shape": [2, 3], "max_batch": 8}
    work = load_work(json.dumps({**stated, "launch_seconds": 0.0, "row_seconds": 0.0}))
    teacher = SimulatedTeacher((2, 3), DeviceTiming(0.0, 0.0))
    z = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    t = np.array([0, 1, 499, 998, 999])
    theirs = teacher.predict_noise(torch.from_numpy(z), torch.from_numpy(t), {}).numpy()
    np.testing.assert_allclose(work.predict(z, t), theirs, rtol=1e-6)
    requests = [int(ti).to_bytes(8, "little") + zi.tobytes() for zi, ti in zip(z, t, strict=True)]
    answers = [
        np.frombuffer(each, np.float32).reshape(2, 3) for each in predict_bytes(work, requests)
    ]
    np.testing.assert_array_equal(np.stack(answers), work.predict(z, t))


def test_the_network_is_that_of_the_server(tmp_path: Path) -> None:
    """Two to five million parameters, and the same eps_hat as the server's teacher."""
    shape = (4, 16, 16)
    assert 2e6 < write_network(tmp_path, shape) < 5e6
    stated = {"kind": "network", "event_shape": shape, "folder": str(tmp_path), "max_batch": 8}
    work = load_work(json.dumps({**stated, "shared_site": sys.path[-1]}))
    registration = TeacherRegistration("net", tmp_path)
    teacher = load_teacher(registration, device=torch.device("cpu"), dtype=torch.float32)
    z = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    t = np.array([20, 700])
    theirs = teacher.predict_noise(torch.from_numpy(z), torch.from_numpy(t), {}).numpy()
    np.testing.assert_allclose(work.predict(z, t), theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(theirs).max() > 1e-3


def test_formats_hold_the_request() -> None:
    row = np.arange(6, dtype=np.float32).tobytes()
    plain = (500).to_bytes(8, "little") + row
    assert FORMATS["plain"].encode(plain, (2, 3)) == plain
    listed = json.loads(FORMATS["json"].encode(plain, (2, 3)))
    assert base64.b64decode(listed["rows"][0]) == plain
    reply = json.dumps([base64.b64encode(row).decode()]).encode()
    assert FORMATS["json"].decode(reply, len(row)) == row
    value = FORMATS["bytes-value"].encode(plain * 50, (2, 3))
    assert value == BytesValue(value=plain * 50).SerializeToString()
    assert FORMATS["bytes-value"].decode(BytesValue(value=row).SerializeToString(), 24) == row


def test_the_inference_request_parses_as_protobuf() -> None:
    """By another reader of the wire format: an unknown message's fields, as raw protoc decodes
    them."""
    row = np.zeros((4, 64, 64), np.float32).tobytes()
    message = FORMATS["inference"].encode((500).to_bytes(8, "little") + row, (4, 64, 64))
    fields = list(_fields(message))
    assert [number for number, _ in fields] == [1, 5, 5, 7, 7]
    assert fields[0][1] == b"denoiser"
    assert [list(_fields(body)) for _, body in fields[1:3]] == [
        [(1, b"t"), (2, b"INT64"), (3, b"\x01\x01")],
        [(1, b"z"), (2, b"FP32"), (3, b"\x01\x04\x40\x40")],
    ]
    assert fields[3][1] == b"\xf4\x01" + bytes(6) and fields[4][1] == row


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        assert key & 7 == 2
        length, at = _varint(message, at)
        found.append((key >> 3, message[at : at + length]))
        at += length
    assert at == len(message)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def test_every_peer_is_pinned_and_has_its_script() -> None:
    assert len({peer.id for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert all("==" in requirement for requirement in peer.requirements)
        assert peer.format in FORMATS
        named = [a for a in peer.arguments if "serve_" in a and "/" in a]
        assert all(Path(a).is_file() for a in named)
    by_environment = {(peer.environment, tuple(peer.requirements)) for peer in PEERS}
    assert len({environment for environment, _ in by_environment}) == len(by_environment)


def test_carv_does_the_peers_work(workload: Workload, tmp_path: Path) -> None:
    answer = workload.answer()
    with running_carv(workload, answer, tmp_path / "carv.log") as running:
        assert tuple(ask.title for ask in running.asks) == CARV_WAYS
        *_, streamed = running.asks
        reply = asyncio.run(call_once(streamed.target, streamed.payload, 20.0))
        gradient = pb.StreamGradientsResponse.FromString(reply).estimate.gradient
        assert decode_tensor(gradient).shape == (1, *EVENT_SHAPE)
        assert running.pids()
    with (
        pytest.raises(StartFailed, match="something else"),
        running_carv(workload, answer + 1, tmp_path / "carv.log"),
    ):
        raise AssertionError("it was believed")


def test_grpc_alone_does_the_peers_work_a_full_batch_at_a_time(
    workload: Workload, tmp_path: Path
) -> None:
    """By a call each and on open ones. Four callers share a forward, where two halves would take
    turns and twice as long; and one does not wait for those that have left."""
    folders = (tmp_path / "venvs", tmp_path / "home", tmp_path / "log")
    files = {"row": str(tmp_path / "row")}
    launch = 0.1
    stated = {**workload.stated, "launch_seconds": launch, "row_seconds": 0.0}
    workload = replace(workload, stated=stated)
    with running_peer(GRPC_ALONE, workload, workload.answer(), *folders) as running:
        assert tuple(ask.title for ask in running.asks) == GRPC_WAYS
        for ask in running.asks:
            reply = asyncio.run(call_once(ask.target, ask.payload, 20.0))
            np.testing.assert_allclose(
                np.frombuffer(reply, np.float32).reshape(EVENT_SHAPE), workload.answer(), 1e-6
            )
            Path(files["row"]).write_bytes(ask.payload)
            load = Load(ask.target, files, clients=4, seconds=1.0, warm_seconds=0.3)
            for clients in (4, 1):
                median = float("inf")
                for _ in range(3):
                    observed = measure([replace(load, clients=clients)], running.pids).first
                    assert not observed.failures
                    median = observed.quantile(0.5)
                    assert median >= launch
                    if median < 1.9 * launch:
                        break
                else:  # a machine that halts for a window does not for three
                    pytest.fail(f"{clients} clients wait for {median:.3f} s")
    assert marked("HOME", str(tmp_path / "home")) == []


_SERVER = """
import http.server, os, sys
sys.path.insert(0, {scripts!r})
from work import load_work, predict_bytes, served_port
work = load_work()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = predict_bytes(work, [body])[0]{spoil}
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
assert "PYTHONHOME" not in os.environ and "CARV_PRIVATE" not in os.environ
http.server.ThreadingHTTPServer(("127.0.0.1", served_port()), Handler).serve_forever()
"""


def small_peer(tmp_path: Path, program: str) -> Peer:
    """A peer without an environment to install: this interpreter."""
    script = tmp_path / "serve_small.py"
    script.write_text(program)
    here = tmp_path / "venvs" / "small" / "bin"
    here.mkdir(parents=True)
    (here / "python").symlink_to(sys.executable)
    return replace(
        PEERS[0], id="small", title="small", environment="small", arguments=(str(script),),
        path="/", requirements=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (_SERVER.format(scripts=str(SCRIPTS), spoil=""), None),
        (_SERVER.format(scripts=str(SCRIPTS), spoil="[:-4]"), "65532 bytes, not 65536"),
        (_SERVER.format(scripts=str(SCRIPTS), spoil="[4:] + bytes(4)"), "something else"),
        ("raise SystemExit('no licence')", "exit code 1: no licence"),
    ],
    ids=["good", "short", "wrong", "ends"],
)
def test_a_peer_is_started_checked_and_ended(
    workload: Workload, tmp_path: Path, program: str, why: str | None, monkeypatch
) -> None:
    monkeypatch.setenv("CARV_PRIVATE", "x")
    peer = small_peer(tmp_path, program)
    folders = (tmp_path / "venvs", tmp_path / "home", tmp_path / "log")
    pids: list[int] = []
    if why is None:
        with running_peer(peer, workload, workload.answer(), *folders) as running:
            pids = running.pids()
            assert len(pids) == 1
        assert not set(pids) & set(marked("HOME", str(tmp_path / "home")))
    else:
        with (
            pytest.raises(StartFailed, match=why),
            running_peer(peer, workload, workload.answer(), *folders),
        ):
            raise AssertionError("it was believed")
    assert marked("HOME", str(tmp_path / "home")) == []


def test_a_peer_that_is_not_to_be_had(tmp_path: Path) -> None:
    """pip refuses a local folder that is none, without asking an index."""
    peer = replace(PEERS[0], requirements=(f"{tmp_path}/nothing",), environment="none")
    said: list[str] = []
    with pytest.raises(InstallFailed, match="nothing"):
        install(peer, tmp_path / "venvs", said.append)
    assert said == [f"installing {peer.title}"]


def test_grpc_alone_is_beside_the_simulated_device_and_needs_no_environment(tmp_path: Path) -> None:
    assert contenders("simulated", PEERS) == (GRPC_ALONE, *PEERS)
    assert contenders("network", PEERS) == PEERS
    assert columns("simulated", PEERS) - columns("network", PEERS) == len(GRPC_WAYS)
    said: list[str] = []
    install(GRPC_ALONE, tmp_path / "venvs", said.append)
    assert not said and not (tmp_path / "venvs").exists()


def test_a_private_network_has_loopback_alone() -> None:
    """In a process of one thread, as the command enters it; skipped where the system refuses."""
    program = (
        "import socket\n"
        "from carv_server.bench.peers.private_network import enter_private_network\n"
        "try:\n    enter_private_network()\nexcept OSError as error:\n"
        "    raise SystemExit(f'refused: {error}')\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "socket.create_connection(s.getsockname()).close()\n"
        "print([name for _, name in socket.if_nameindex()])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if "refused" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == "['lo']\n", done.stderr
    assert len(socket.if_nameindex()) >= 1  # this process is where it was


def bench(tmp_path: Path, *arguments: str) -> int:
    return cli.main(["bench", "peers", "--output", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes=9"], "'9' is not a number of minutes, 10 or more"),
        (["--quick", "--minutes", "20"], "not allowed with argument"),
        (["--rounds", "0"], "'0' is not a whole number above 0"),
        (["--peer", "torchserve"], "invalid choice: 'torchserve'"),
        (["--workload", "all"], "invalid choice: 'all'"),
    ],
)
def test_arguments_that_cannot_be_used(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(tmp_path, *arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert bench(tmp_path, "--docs", str(tmp_path / "file")) == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


def test_sigterm_is_passed_on_to_the_measuring_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a parent that dies of it, and a child that measures on."""
    ready, child = tmp_path / "ready", tmp_path / "child"
    child.write_text(
        f"#!/bin/sh\ncat > {tmp_path / 'plan'}\ntrap 'exit 130' TERM\ntouch {ready}\n"
        "while :; do sleep 0.05; done\n"
    )
    child.chmod(0o700)
    monkeypatch.setattr(peers_run.sys, "executable", str(child))

    def end() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    plan = Plan([], [], [], 1, 1.0, 1.0, str(tmp_path), None, "", "", "")
    assert measure_in_private(plan) == 130
    thread.join()
    assert json.loads((tmp_path / "plan").read_text())["rounds"] == 1


def test_the_plan_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def measured(plan: Plan) -> int:
        plans.append(plan)
        return 130

    monkeypatch.setattr(peers_run, "prepare", lambda plan: plan)
    monkeypatch.setattr(peers_run, "measure_in_private", measured)
    assert bench(tmp_path, "--quick", "--peer", "mosec", "--workload", "simulated") == 130
    assert bench(tmp_path, "--minutes", "60") == 130
    quick, full = plans
    assert (quick.peers, quick.workloads, quick.rounds) == (["mosec"], ["simulated"], 1)
    assert full.peers == [peer.id for peer in PEERS] and full.rounds == 4
    assert quick.seconds < full.seconds
    assert (
        windows(30, 4, PEERS, ["simulated"])
        > windows(30, 4, PEERS, ["simulated", "network"])
        >= 1.0
    )
