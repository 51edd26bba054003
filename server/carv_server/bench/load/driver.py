"""A load driver: a process that reads one ``Load`` as JSON on stdin, says ``measuring`` and
``measured`` at the ends of the window, and prints what it observed as JSON.

    python -m carv_server.bench.load.driver < load.json
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from carv_server.bench.load.flow import Load, Observed, decode_load, encode
from carv_server.bench.load.wire import Caller, CallFailed, connect

__all__ = ["drive"]

_LAST_SECONDS = 60.0  # what is in flight when the window ends may take so long
_FAILURE_CHARACTERS = 160
_RETRY_SECONDS = 0.01  # a failing server is not asked in a tight loop


class _Record:
    """Counts what belongs to the window."""

    def __init__(self, load: Load) -> None:
        self._latencies: dict[str, list[float]] = {label: [] for label in load.payloads}
        self._failures: Counter[str] = Counter()
        self.start = float("inf")
        self.end = float("inf")

    def good(self, label: str, began: float, counted_at: float) -> None:
        if self.start <= counted_at < self.end:
            self._latencies[label].append(time.perf_counter() - began)

    def bad(self, error: CallFailed, counted_at: float) -> None:
        if self.start <= counted_at < self.end:
            self._failures[str(error)[:_FAILURE_CHARACTERS]] += 1

    def unanswered(self) -> None:
        self._failures[f"not all answered {_LAST_SECONDS:g} s after the window"] += 1

    def observed(self, cpu_seconds: float) -> Observed:
        return Observed(self.end - self.start, self._latencies, dict(self._failures), cpu_seconds)


async def drive(load: Load, payloads: Mapping[str, bytes], say: Callable[[str], None]) -> Observed:
    """Warm up, measure, let what is in flight end.

    Args:
        payloads: contents of the load's files, by label.

    Raises:
        CallFailed: the target does not accept connections.
    """
    callers = [await connect(load.target) for _ in range(load.clients)]
    record = _Record(load)
    stop = asyncio.Event()
    generate = _open_loop if load.rate else _closed_loop
    work = asyncio.ensure_future(generate(load, payloads, callers, record, stop))
    try:
        await _pass(load.warm_seconds, work)
        say("measuring")
        cpu = _cpu_seconds()
        record.start = time.perf_counter()
        await _pass(load.seconds, work)
        record.end = time.perf_counter()
        cpu = _cpu_seconds() - cpu
        say("measured")
        stop.set()
        done, _ = await asyncio.wait({work}, timeout=_LAST_SECONDS)
        if done:
            work.result()
        else:
            record.unanswered()
    finally:
        work.cancel()
        await asyncio.gather(*(caller.close() for caller in callers), return_exceptions=True)
    return record.observed(cpu)


async def _pass(seconds: float, work: asyncio.Future[None]) -> None:
    """So many seconds of the load going on; raises what it raises."""
    done, _ = await asyncio.wait({work}, timeout=seconds)
    if done:
        work.result()


async def _closed_loop(
    load: Load,
    payloads: Mapping[str, bytes],
    callers: list[Caller],
    record: _Record,
    stop: asyncio.Event,
) -> None:
    async def client(number: int, caller: Caller) -> None:
        deal = _deal(list(payloads), random.Random(f"{load.seed}/{number}"))
        while not stop.is_set():
            label = next(deal)
            began = time.perf_counter()
            try:
                await caller.call(payloads[label])
            except CallFailed as error:
                record.bad(error, time.perf_counter())
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                record.good(label, began, time.perf_counter())
            if load.pause_seconds:
                await asyncio.sleep(load.pause_seconds)

    await _together([client(number, caller) for number, caller in enumerate(callers)])


async def _open_loop(
    load: Load,
    payloads: Mapping[str, bytes],
    callers: list[Caller],
    record: _Record,
    stop: asyncio.Event,
) -> None:
    chance = random.Random(load.seed)
    deal = _deal(list(payloads), chance)
    flying: set[asyncio.Task[None]] = set()

    async def send(label: str, caller: Caller, due: float) -> None:
        try:
            await caller.call(payloads[label])
        except CallFailed as error:
            record.bad(error, due)
        else:
            record.good(label, due, due)

    due, number = time.perf_counter(), 0
    while not stop.is_set():
        due += chance.expovariate(load.rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(send(next(deal), callers[number % len(callers)], due))
        flying.add(task)
        task.add_done_callback(flying.discard)
        number += 1
    await asyncio.gather(*flying)


def _deal(labels: list[str], chance: random.Random) -> Iterator[str]:
    """Labels in random order, each once before any comes again, so that a short window has its
    share of all."""
    while True:
        yield from chance.sample(labels, len(labels))


async def _together(work: list[Awaitable[None]]) -> None:
    await asyncio.gather(*work)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    def say(text: str) -> None:
        print(text, flush=True)

    load = decode_load(json.load(sys.stdin))
    payloads = {label: Path(path).read_bytes() for label, path in load.payloads.items()}
    try:
        observed = asyncio.run(drive(load, payloads, say))
    except CallFailed as error:
        print(error, file=sys.stderr)
        return 1
    say(json.dumps(encode(observed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
