"""Starts drivers, and meters the server's processes over their window."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from carv_server.bench.load.flow import Load, Observed, decode_observed, encode
from carv_server.bench.load.processes import cpu_seconds, machine_cpu_seconds

__all__ = ["DriverFailed", "Metered", "measure"]


class DriverFailed(RuntimeError):
    """A driver ended without a result; the message holds its last words."""


@dataclass(frozen=True)
class Metered:
    """A window of load and what the server used in it.

    Attributes:
        observed: what each driver saw, in the order of the loads.
        server_cpu_seconds: processor time of the server's processes in the first one's window.
        foreign_cores: that work other than server and first driver took meanwhile; above about
            0.1 the machine was not quiet. Companions count as other work.
    """

    observed: tuple[Observed, ...]
    server_cpu_seconds: float
    foreign_cores: float = 0.0

    @property
    def first(self) -> Observed:
        return self.observed[0]

    @property
    def server_cpu_per_request(self) -> float:
        """Seconds; NaN without a request."""
        requests = self.first.requests
        return self.server_cpu_seconds / requests if requests else float("nan")


def measure(loads: Sequence[Load], server: Callable[[], Sequence[int]]) -> Metered:
    """Drive the loads at the same time, each from a process of its own.

    Args:
        loads: the first one's window is the one that is metered.
        server: the pids to meter.

    Raises:
        DriverFailed: a driver ended without a result.
    """
    drivers = [_start(load) for load in loads]
    try:
        _expect(drivers[0], "measuring")
        before, busy = cpu_seconds(server()), machine_cpu_seconds()
        _expect(drivers[0], "measured")
        busy = machine_cpu_seconds() - busy
        used = cpu_seconds(server()) - before
        observed = tuple(_result(driver) for driver in drivers)
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()
    foreign = (busy - used - observed[0].client_cpu_seconds) / observed[0].seconds
    return Metered(observed, used, max(0.0, foreign))


def _start(load: Load) -> subprocess.Popen[str]:
    driver = subprocess.Popen(
        [sys.executable, "-m", "carv_server.bench.load.driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process
    )
    stdin = _stream(driver.stdin)
    json.dump(encode(load), stdin)
    stdin.close()
    driver.stdin = None  # communicate() would flush it
    return driver


def _expect(driver: subprocess.Popen[str], word: str) -> None:
    line = _stream(driver.stdout).readline().strip()
    if line != word:
        raise _failure(driver, line)


def _result(driver: subprocess.Popen[str]) -> Observed:
    for line in _stream(driver.stdout):
        if line.startswith("{"):
            return decode_observed(json.loads(line))
    raise _failure(driver, "")


def _failure(driver: subprocess.Popen[str], line: str) -> DriverFailed:
    driver.kill()
    words = _stream(driver.stderr).read().strip() or line or "it said nothing"
    return DriverFailed(f"a load driver ended early: {words[-1500:]}")


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
