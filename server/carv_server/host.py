"""The machine under the server: its cores, its scheduler, and the C library's allocator."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "event_loop_factory",
    "forward_threads",
    "keep_freed_memory",
    "settle_heap",
    "undisturbed_seconds",
    "usable_cores",
]

_SCHEDULER_STATISTICS = Path("/proc/thread-self/schedstat")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MOST_READINGS = 8

# mallopt(3) of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT_BYTES = 1 << 30

# Objects made less those freed before a collection: a request makes some hundred, and frees them
# without one.
_COLLECT_AFTER = (10_000, 20, 20)


def usable_cores(quota: Path = _CPU_QUOTA) -> int:
    """Cores that this process may use: its affinity, and a container's quota, rounded down."""
    cores = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, int(limit) // int(period))
    except (OSError, ValueError):
        pass  # no such limit here
    return max(1, cores)


def forward_threads() -> int:
    """Threads for a forward on a CPU: one core is left to the front, where there are two."""
    return max(1, usable_cores() - 1)


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, by which a small request costs 5 % less; None, asyncio's own, where it is not."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def undisturbed_seconds() -> float:
    """A clock that stands still while this thread waits for a processor that others hold: what
    it measures is the work, also on a busy machine. Only Linux can tell."""
    before = _waited_nanoseconds()
    now, waited = time.perf_counter(), _waited_nanoseconds()
    for _ in range(_MOST_READINGS):
        if waited == before:
            break
        # The thread waited between the two readings: they do not belong together.
        before = waited
        now, waited = time.perf_counter(), _waited_nanoseconds()
    return now - 1e-9 * waited


def _waited_nanoseconds() -> int:
    """In the processor's queue, of this thread; 0 where nothing tells."""
    try:
        _, waited, *_ = _SCHEDULER_STATISTICS.read_text().split()
    except (OSError, ValueError):
        return 0
    return int(waited)


def keep_freed_memory() -> bool:
    """Have malloc keep what a forward frees for the next one, in place of handing pages back and
    taking zeroed ones again; false where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    )


def settle_heap() -> None:
    """Leave all that lives by now, libraries and teachers, out of the garbage collector's passes:
    they took a third of the processor time of small requests, and the longest a tenth of a
    second at a stretch. For a process that serves until it ends."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
