"""Perform the steps of the images' Dockerfiles where no container engine runs.

    python -m deploy.docker.rehearse [--build-arg NAME=VALUE] [--env NAME=VALUE] [SERVER_DOCKERFILE]

Not a build: no image is made and no base image is pulled. Each stage is an overlay over this
machine's own root, which stands in for the base image (its Python must be of the same minor
version), with this checkout hidden. ARG, ENV, WORKDIR, COPY (through the .dockerignore), RUN and
USER are then done as written, the server is started by ENTRYPOINT and CMD as process 1 of its own
process and network namespaces, with the image's user, no capabilities and a read-only root, and
must become healthy by the image's own HEALTHCHECK. The example client's image runs against it.
SIGTERM must end it with exit code 0. Linux, and root.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.docker.dockerfile import DockerfileError, Healthcheck
from deploy.docker.stages import Builder, Built, RehearsalError

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
_SERVER = "deploy/docker/server-cpu.Dockerfile"
_CLIENT = "deploy/docker/client.Dockerfile"
# The image listens beyond loopback (of its own network namespace here) and has no tenants.
_WORDS = {
    "CARV_PUBLIC_WITHOUT_CREDENTIALS": "anyone who reaches this address may use it",
}
_STOP_SECONDS = 32.0  # drain_seconds of the image's configuration, and two
_INSIDE = "CARV_REHEARSAL_FOLDER"


def main() -> int:
    """Exit code 0 where every step did what it should, 1 with the reason on stderr, 2 on usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("server", nargs="?", default=_SERVER, help="default: %(default)s")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    if sys.platform != "linux" or os.geteuid() != 0:
        print("rehearse: needs Linux and root, for namespaces and overlays", file=sys.stderr)
        return 2
    folder = os.environ.get(_INSIDE)
    if folder is None:
        return _in_namespaces()
    arguments_of_build = dict(pair.split("=", 1) for pair in arguments.build_arg)
    environment = dict(pair.split("=", 1) for pair in arguments.env)
    try:
        _rehearse(Path(folder), arguments.server, arguments_of_build, environment)
    except (DockerfileError, RehearsalError) as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 1
    print("rehearsal: passed (no image was built)")
    return 0


def _in_namespaces() -> int:
    """This program again, where mounts and processes end with it, whatever happens.

    The folder is emptied by the end of its mounts and never by deleting what is in it: that
    would reach through a mount that is still there.
    """
    folder = tempfile.mkdtemp(prefix="rehearsal-")
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, "-m", "deploy.docker.rehearse", *sys.argv[1:]]
    try:
        return subprocess.run(command, env=os.environ | {_INSIDE: folder}, check=False).returncode
    finally:
        os.rmdir(folder)


def _rehearse(
    folder: Path, server: str, build_arguments: dict[str, str], environment: dict[str, str]
) -> None:
    builder = Builder(ROOT, folder, build_arguments)
    built = builder.build(server)
    builder.check_pins(built)
    client = builder.build(_CLIENT)
    started = time.monotonic()
    process, pid = _start(built, environment)
    try:
        _wait_healthy(built, process, pid)
        print(f"rehearsal: healthy after {time.monotonic() - started:.1f} s", flush=True)
        _refuse_writing(built, pid)
        _run_client(client, pid)
        stopped = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        try:
            code = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise RehearsalError(f"SIGTERM did not end it within {_STOP_SECONDS:g} s") from None
        if code != 0:
            raise RehearsalError(f"SIGTERM ended it with exit code {code}")
        print(f"rehearsal: stopped on SIGTERM in {time.monotonic() - stopped:.1f} s", flush=True)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _start(built: Built, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """The server, and its process id as seen from here."""
    built.seal()
    namespaces = ["unshare", "--pid", "--net", "--fork", "--kill-child"]
    namespaces += [f"--mount-proc={built.root}/proc"]
    up = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    command = [*namespaces, *up, *built.confined(_WORDS | environment), *built.command()]
    print("rehearsal: start:", *built.command(), flush=True)
    process = subprocess.Popen(command)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        found = children.read_text(encoding="ascii").split()
        if found:
            return process, int(found[0])
        time.sleep(0.05)
    raise RehearsalError("the server's process did not start")


def _wait_healthy(built: Built, process: subprocess.Popen[bytes], pid: int) -> None:
    instruction = built.last("HEALTHCHECK")
    check = Healthcheck.of(instruction) if instruction else None
    if check is None:
        raise RehearsalError("the server's image has no HEALTHCHECK")
    deadline = time.monotonic() + check.start_period + check.interval * check.retries
    said = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RehearsalError(f"the server ended with exit code {process.returncode}")
        result = _beside(built, pid, check.command, check.timeout)
        if result.returncode == 0:
            return
        said = result.stderr
        time.sleep(1)
    raise RehearsalError(f"not healthy by the image's own check: {said.strip()}")


def _refuse_writing(built: Built, pid: int) -> None:
    script = "touch /opt/carv/x 2>/dev/null || touch /etc/x 2>/dev/null || touch /x 2>/dev/null"
    if _beside(built, pid, ["sh", "-c", script], 10).returncode == 0:
        raise RehearsalError("the root file system can be written")
    if _beside(built, pid, ["sh", "-c", "touch /tmp/x"], 10).returncode != 0:
        raise RehearsalError("/tmp cannot be written")


def _run_client(client: Built, pid: int) -> None:
    client.name_loopback("server")
    client.seal()
    result = _beside(client, pid, client.command(), 300)
    print(result.stdout, end="", flush=True)
    if result.returncode != 0:
        raise RehearsalError(f"the example client failed:\n{result.stderr}")


def _beside(
    built: Built, pid: int, command: Sequence[str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run in a sealed root, in the network namespace of a process."""
    whole = ["nsenter", f"--net=/proc/{pid}/ns/net", *built.confined({}), *command]
    try:
        return subprocess.run(whole, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(whole, 1, "", f"no end after {error.timeout:g} s")


if __name__ == "__main__":
    sys.exit(main())
