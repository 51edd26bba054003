"""Starts a contender, sees that it does the work, and ends all of it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carv.tensors import decode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.bench.load.processes import descendants, marked, stop_all
from carv_server.bench.load.requests import (
    create_handle,
    estimate_payload,
    predict_payload,
    service_target,
    stream_payload,
    stream_target,
)
from carv_server.bench.load.wire import CallFailed, Target, call_once
from carv_server.bench.peers.codec import FORMATS
from carv_server.bench.peers.install import python_of
from carv_server.bench.peers.registry import (
    CARV_ESTIMATE,
    CARV_PREDICT,
    CARV_STREAM,
    SCRIPTS,
    Peer,
)
from carv_server.bench.peers.scripts.work import PORT_VARIABLE, WORK_VARIABLE
from carv_server.bench.peers.workload import EVENT_SHAPE, MAX_BATCH, Workload
from carv_server.demo.process import running_server

__all__ = [
    "Ask",
    "Running",
    "StartFailed",
    "running_carv",
    "running_peer",
]

_RUN_VARIABLE = "CARV_PEER_RUN"
_START_SECONDS = 120.0
_CALL_SECONDS = 20.0
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_TAIL_CHARACTERS = 400

Float32Array = npt.NDArray[np.float32]


class StartFailed(RuntimeError):
    """A contender did not start, or does not answer with the work's result."""


@dataclass(frozen=True)
class Ask:
    """One way to ask a running contender.

    Attributes:
        title: of its rows in the tables.
        payload: the request's bytes.
    """

    title: str
    target: Target
    payload: bytes


@dataclass(frozen=True)
class Running:
    """A contender that answers.

    Attributes:
        pids: its processes at this moment.
    """

    asks: Sequence[Ask]
    pids: Callable[[], list[int]]


@contextmanager
def running_carv(workload: Workload, answer: Float32Array, log: Path) -> Iterator[Running]:
    """``carv serve`` with the workload's teacher, asked for the peers' very work and for a
    gradient at K = 1, which adds drawing (t, eps), the noise itself and the reduction: by a call
    for each, and by one that stays open.

    Raises:
        ServerFailed: it is not healthy in time.
        StartFailed: its answer is another.
    """
    arguments = ["--teacher", f"work={workload.teacher}", "--evaluation-budget", str(MAX_BATCH)]
    with running_server(log, threads=1, arguments=arguments) as server:
        handle = create_handle(server.address, None)
        predict = Ask(
            CARV_PREDICT,
            service_target(server.address, "PredictNoise"),
            predict_payload(workload.row, handle, workload.timestep),
        )
        estimate = Ask(
            CARV_ESTIMATE,
            service_target(server.address, "EstimateGradient"),
            estimate_payload(workload.row[np.newaxis], [handle], [1.0], draws=1),
        )
        streamed = Ask(CARV_STREAM, stream_target(server.address), stream_payload(estimate.payload))
        try:
            reply = asyncio.run(call_once(predict.target, predict.payload, _CALL_SECONDS))
        except CallFailed as error:
            raise StartFailed(str(error)) from None
        noise = pb.PredictNoiseResponse.FromString(reply).noise_prediction
        _check(np.asarray(decode_tensor(noise)).reshape(EVENT_SHAPE), answer)
        yield Running((estimate, predict, streamed), lambda: descendants(server.pid))


@contextmanager
def running_peer(
    peer: Peer,
    workload: Workload,
    answer: Float32Array,
    environments: Path,
    home: Path,
    log: Path,
) -> Iterator[Running]:
    """A peer with the workload, in its environment and a home folder of its own.

    Raises:
        StartFailed: it ends, or does not give the answer within two minutes.
    """
    port, mark = _free_ports(), secrets.token_hex(8)
    arguments = [argument.replace("{port}", str(port)) for argument in peer.arguments]
    format_ = FORMATS[peer.format]
    payload = format_.encode(workload.request, EVENT_SHAPE)
    asks = tuple(Ask(title, target, payload) for title, target in peer.targets(port).items())

    def pids() -> list[int]:
        return marked(_RUN_VARIABLE, mark)

    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(python_of(peer, environments).absolute()), *arguments],
            cwd=SCRIPTS,
            env=_environment(home, peer.variables)
            | {
                PORT_VARIABLE: str(port),
                WORK_VARIABLE: workload.work(peer.window_seconds),
                _RUN_VARIABLE: mark,
            },
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the peer
        )
        try:
            reply = _first_reply(process, asks[0], log)
            row = format_.decode(reply, answer.nbytes)
            if len(row) != answer.nbytes:
                raise StartFailed(f"its answer holds {len(row)} bytes, not {answer.nbytes}")
            _check(np.frombuffer(row, np.float32).reshape(EVENT_SHAPE), answer)
            yield Running(asks, pids)
        finally:
            stop_all(pids, _GRACE_SECONDS)
            process.wait()


def _first_reply(process: subprocess.Popen[bytes], ask: Ask, log: Path) -> bytes:
    deadline = time.monotonic() + _START_SECONDS
    said = "it never answered"
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None:
            raise StartFailed(f"ended with exit code {code}: {_tail(log)}")
        try:
            return asyncio.run(call_once(ask.target, ask.payload, _CALL_SECONDS))
        except CallFailed as error:
            said = str(error)
        time.sleep(_POLL_SECONDS)
    raise StartFailed(f"no answer after {_START_SECONDS:g} s: {said}")


def _check(given: Float32Array, answer: Float32Array) -> None:
    # A network's sums depend on the shape of the batch in the last digits.
    if not np.allclose(given, answer, rtol=1e-3, atol=1e-3):
        worst = float(np.abs(given - answer).max())
        raise StartFailed(f"it answers something else: off by up to {worst:.3g}")


def _environment(home: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Of a peer: a home of its own, nothing of what this process was told, one thread of
    computing."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "CARV_"))
    }
    home.mkdir(parents=True, exist_ok=True)
    fixed = {
        "HOME": str(home.absolute()),
        "PYTHONPATH": str(SCRIPTS),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return kept | fixed | dict(variables)


def _free_ports() -> int:
    """The first of two neighbouring loopback ports that were free a moment ago."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _tail(log: Path) -> str:
    text = " ".join(log.read_text(errors="replace").split())
    return text[-_TAIL_CHARACTERS:] or "it wrote nothing"
