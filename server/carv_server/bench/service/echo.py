"""A gRPC server that gives back the bytes it was sent: what the transport alone costs in Python,
under the same front library and the same driver.

    python -m carv_server.bench.service.echo HOST:PORT
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from carv_server.bench.load.wire import CallFailed, Target, call_once
from carv_server.host import event_loop_factory

__all__ = ["echo_target", "running_echo"]

_SERVICE = "carv.bench.Echo"
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_START_SECONDS = 60.0
_POLL_SECONDS = 0.1
_TRY_SECONDS = 1.0


def echo_target(address: str) -> Target:
    return Target("grpc", address, f"/{_SERVICE}/Echo")


@contextmanager
def running_echo() -> Iterator[tuple[str, int]]:
    """Address and pid of an echo server in a process of its own.

    Raises:
        CallFailed: it does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "carv_server.bench.service.echo", address],
        stdin=subprocess.PIPE,  # closed with this process, which ends the server
        start_new_session=True,
    )
    try:
        _wait_until_answering(address, process)
        yield address, process.pid
    finally:
        process.kill()
        process.communicate()


def _wait_until_answering(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            asyncio.run(call_once(echo_target(address), b"", _TRY_SECONDS))
            return
        except CallFailed:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


async def _serve(address: str) -> None:
    async def echo(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return data

    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
    )
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)  # pyright: ignore[reportArgumentType]
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE, {"Echo": method}),)
    )
    server.add_insecure_port(address)
    await server.start()
    # Until the parent is gone.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(_serve(sys.argv[1]))
