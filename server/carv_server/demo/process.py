"""A CARV server as a process of its own, for as long as a ``with`` block lasts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["Server", "ServerFailed", "free_address", "running_server"]

_TAIL_LINES = 20
_STOP_SECONDS = 10.0


class ServerFailed(RuntimeError):
    """The server ended or stayed silent before it was ready; the message holds its last words."""


@dataclass(frozen=True)
class Server:
    """A healthy server."""

    address: str
    pid: int


def free_address() -> str:
    """A loopback address whose port was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def running_server(
    log: Path,
    *,
    threads: int,
    arguments: Sequence[str] = (),
    address: str | None = None,
    timeout: float = 240.0,
    module: str = "carv_server.demo.child",
) -> Iterator[Server]:
    """Starts ``carv serve`` on a free loopback port and yields it once it is healthy.

    The server writes to ``log`` and uses ``threads`` threads for its forwards. It is stopped when
    the block ends, however it ends; if this process is killed outright, it stops by itself within
    seconds. ``arguments`` are further ones of ``carv serve``; ``module`` runs the command line.

    Raises ServerFailed where the server is not healthy within ``timeout`` seconds.
    """
    address = address or free_address()
    command = [sys.executable, "-m", module, str(os.getpid()), "serve"]
    command += ["--address", address, "--torch-threads", str(threads), "--drain-seconds", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the server
        )
        try:
            _wait_until_healthy(process, address, log, timeout)
            yield Server(address, process.pid)
        finally:
            _stop(process)


def _wait_until_healthy(
    process: subprocess.Popen[bytes], address: str, log: Path, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    # Without these, a connection refused early on is not tried again for many seconds.
    backoff = [(f"grpc.{name}_reconnect_backoff_ms", 200) for name in ("initial", "min", "max")]
    with grpc.insecure_channel(address, options=backoff) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                raise ServerFailed(
                    f"the server ended with exit code {code} before it was ready{_tail(log)}"
                )
            try:
                reply = health.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                time.sleep(0.1)
                continue
            # Alive as well: whoever else holds the port may answer in its place.
            if reply.status == health_pb2.HealthCheckResponse.SERVING and process.poll() is None:
                return
            time.sleep(0.1)
    raise ServerFailed(f"the server was not healthy after {timeout:.0f} s{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL where that is not enough; returns when the process is gone."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    finally:  # too slow, or a second Ctrl-C
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    if not lines:
        return f"; it wrote nothing to {log}"
    return f"; the end of {log}:\n" + "\n".join(f"    {line}" for line in lines)
