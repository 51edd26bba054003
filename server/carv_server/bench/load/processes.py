"""Processes by /proc (Linux): whose they are, what they have used, and their end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["cpu_seconds", "descendants", "machine_cpu_seconds", "marked", "stop_all"]

_TICKS = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.05


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that the living ones of these have used, user and system. Resolution: a
    clock tick, usually 10 ms, for each process."""
    total = 0
    for pid in pids:
        fields = _stat(pid)
        if fields:
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def machine_cpu_seconds() -> float:
    """Processor time that the whole machine has been busy for, since it started."""
    with open("/proc/stat") as file:
        fields = file.readline().split()
    user, nice, system, _, _, interrupts, soft_interrupts, *_ = map(int, fields[1:])
    return (user + nice + system + interrupts + soft_interrupts) / _TICKS


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for other in _pids():
        fields = _stat(other)
        if fields:
            children.setdefault(int(fields[1]), []).append(other)
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def marked(variable: str, value: str) -> list[int]:
    """Processes whose environment at their start held this variable: all that a program started,
    also those that have left its process tree."""
    wanted = f"{variable}={value}".encode()
    found: list[int] = []
    for pid in _pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(pid)
    return found


def stop_all(find: Callable[[], list[int]], grace_seconds: float) -> None:
    """SIGTERM to the first that ``find`` names, time for all to end, then SIGKILL to whatever is
    left, until nothing is."""
    pids = [pid for pid in find() if pid != os.getpid()]
    if not pids:
        return
    _signal(pids[:1], signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline:
        if not _living(find()):
            return
        time.sleep(_POLL_SECONDS)
    while left := _living(find()):
        _signal(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _living(pids: Iterable[int]) -> list[int]:
    """Those that are neither this process nor zombies that wait for their parent."""
    found: list[int] = []
    for pid in pids:
        fields = _stat(pid)
        if fields and fields[0] != "Z" and pid != os.getpid():
            found.append(pid)
    return found


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            yield int(entry)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The name, in parentheses, may hold anything.
    return text.rpartition(")")[2].split()
