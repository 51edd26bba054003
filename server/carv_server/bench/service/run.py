"""The serving benchmark from end to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from carv_server.bench.load.book import Book, Chapter
from carv_server.bench.load.rounds import other_work
from carv_server.bench.service import arrivals, model, overhead, scheduling
from carv_server.bench.service.desk import Desk, Scale
from carv_server.bench.tables import Origin
from carv_server.demo.progress import Progress

__all__ = ["PARTS", "ServingBench", "run_serving", "scale_for"]

PARTS: tuple[tuple[Callable[[Desk], None], int], ...] = (
    (overhead.measure_overhead, overhead.CELLS),
    (scheduling.measure_scheduling, scheduling.CELLS),
    (arrivals.measure_arrivals, arrivals.CELLS),
    (model.measure_model, model.CELLS),
)
"""With the windows of a round."""

_ROUNDS = 4
_QUICK = Scale(rounds=2, seconds=0.6, warm_seconds=0.3)
_LEAST_SECONDS = 1.0
_WARM_SECONDS = 0.7
_CELL_SECONDS = 0.8  # a driver's start and end
_CHAPTERS = (
    Chapter(
        "The service alone",
        "",
        ("serving_overhead",),
    ),
    Chapter(
        "Scheduling",
        "Times of the device are simulated by sleeping, so that these numbers are of the "
        "scheduler and the front, and less of this machine.",
        ("serving_scheduling", "serving_latency", "serving_arrivals"),
    ),
    Chapter("A network", "", ("serving_model",)),
)
_TEXT = (
    "Server and load driver are processes of one machine, over loopback, and share its cores: the "
    "driver sends requests prepared as bytes, one connection a client, and neither builds nor "
    "parses messages, so that little of what is measured is its own (its processor time is in the "
    "first table)."
)


@dataclass(frozen=True)
class ServingBench:
    """One run.

    Attributes:
        documents: folder that gets ``serving_benchmark.md``, or None.
    """

    scale: Scale
    output: Path
    documents: Path | None
    origin: Origin


def scale_for(minutes: float | None) -> Scale:
    """Windows so long that all takes about so many minutes; None is quick."""
    if minutes is None:
        return _QUICK
    windows = _ROUNDS * sum(cells for _, cells in PARTS)
    seconds = 60.0 * minutes / windows - _WARM_SECONDS - _CELL_SECONDS
    return Scale(_ROUNDS, max(_LEAST_SECONDS, seconds), _WARM_SECONDS)


def run_serving(bench: ServingBench) -> Book:
    """Writes every table and figure to the output folder as its part ends, then ``summary.md``.

    Raises:
        KeyboardInterrupt: what was finished is written, with a summary that says so.
        ServerFailed, DriverFailed, BareFailed, CallFailed: likewise.
    """
    started = time.monotonic()
    book = Book("serving", bench.output, bench.origin)
    scale = bench.scale
    windows = scale.rounds * sum(cells for _, cells in PARTS)
    folder = bench.output / "work"
    folder.mkdir(parents=True, exist_ok=True)
    finished = False
    with Progress(windows * (scale.seconds + scale.warm_seconds)) as progress:
        desk = Desk(book, scale, folder, progress.stage, progress.advance)
        try:
            for part, _ in PARTS:
                part(desk)
            finished = True
        finally:
            book.notes.append(other_work(desk.foreign_cores))
            book.write_summary(time.monotonic() - started, finished=finished)
    if bench.documents is not None:
        title = "The service, measured"
        book.write_document(bench.documents, "serving_benchmark", title, _TEXT, _CHAPTERS)
    return book
