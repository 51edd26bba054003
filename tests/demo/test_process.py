"""The demo's server process: it never outlives the demo, and says why where it does not start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from carv_client import TeacherClient
from carv_server.demo.process import ServerFailed, free_address, running_server
from tests.support.oracle import EVENT_SHAPE, write_oracle_folder

ROOT = Path(__file__).parents[2]
GONE_SECONDS = 60.0
START_SECONDS = 240.0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"mixture={write_oracle_folder(tmp_path_factory.mktemp('oracle'))}"


def gone(pid: int) -> bool:
    """Whether there is soon no such process."""
    end = time.monotonic() + GONE_SECONDS
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which only its parent can bury, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:  # gone this moment, or a system without /proc
        return not Path("/proc/self").exists()


@contextmanager
def held_demo(where: Path, teacher: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A demo in a process of its own, and the process id of its healthy server."""
    command = [sys.executable, "-m", "tests.demo.holder", str(where), teacher]
    with (where / "stderr").open("wb") as sink:
        demo = subprocess.Popen(command, cwd=ROOT, stderr=sink, start_new_session=True)
    try:
        end = time.monotonic() + START_SECONDS
        while not (where / "pid").exists():
            assert demo.poll() is None and time.monotonic() < end, (where / "stderr").read_text()
            time.sleep(0.05)
        pid = int((where / "pid").read_text())
        assert alive(pid)
        yield demo, pid
    finally:
        demo.kill()
        demo.wait()


def test_serves_inside_the_block_and_is_gone_after_it(tmp_path: Path, teacher: str) -> None:
    log = tmp_path / "server.log"
    with running_server(log, threads=1, arguments=["--teacher", teacher]) as server:
        assert alive(server.pid)
        with TeacherClient(server.address) as client:
            assert client.get_teacher().event_shape == EVENT_SHAPE
    assert gone(server.pid)
    assert "stopped" in log.read_text()  # by its own clean exit


def test_is_gone_after_an_exception(tmp_path: Path, teacher: str) -> None:
    pid = 0
    log = tmp_path / "server.log"
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="in the block"),
        running_server(log, threads=1, arguments=["--teacher", teacher]) as server,
    ):
        pid = server.pid
        raise RuntimeError("in the block")
    assert pid and gone(pid)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_to_the_demo_ends_both(
    tmp_path: Path, teacher: str, number: signal.Signals, code: int, said: str
) -> None:
    with held_demo(tmp_path, teacher) as (demo, pid):
        demo.send_signal(number)
        assert demo.wait(GONE_SECONDS) == code
        assert gone(pid)
    errors = (tmp_path / "stderr").read_text()
    assert said in errors and "Traceback" not in errors


def test_a_killed_demo_takes_its_server_along(tmp_path: Path, teacher: str) -> None:
    with held_demo(tmp_path, teacher) as (demo, pid):
        demo.kill()
        demo.wait()
        assert gone(pid)


def test_a_teacher_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with (
        pytest.raises(ServerFailed, match="ended with exit code 2 before it was ready") as caught,
        running_server(
            tmp_path / "server.log", threads=1, arguments=["--teacher", f"empty={empty}"]
        ),
    ):
        pytest.fail("a server without a teacher is not ready")
    message = str(caught.value)
    assert f"the end of {tmp_path / 'server.log'}:" in message
    assert f"carv serve: {empty}" in message  # what the server said itself


def test_a_taken_port_is_named(tmp_path: Path, teacher: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        with (
            pytest.raises(ServerFailed, match="ended with exit code 3") as caught,
            running_server(
                tmp_path / "server.log", threads=1, address=address,
                arguments=["--teacher", teacher],
            ),
        ):  # fmt: skip
            pytest.fail("the port is taken")
    assert f"cannot listen on {address}" in str(caught.value)


def test_a_silent_server_is_given_up_on(tmp_path: Path, teacher: str) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerFailed, match="not healthy after 0 s") as caught,
        running_server(log, threads=1, arguments=["--teacher", teacher], timeout=0.0),
    ):
        pytest.fail("no server is ready at once")
    assert f"it wrote nothing to {log}" in str(caught.value)


def test_free_addresses_can_be_bound() -> None:
    host, port = free_address().split(":")
    with socket.socket() as probe:
        probe.bind((host, int(port)))
