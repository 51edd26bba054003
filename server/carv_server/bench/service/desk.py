"""What the parts of the benchmark share: sizes, servers, and cells measured in interleaved
rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carv_server.bench.cells import Measured
from carv_server.bench.load.bare import Bare, Forwards, measure_bare
from carv_server.bench.load.book import Book
from carv_server.bench.load.flow import Load
from carv_server.bench.load.measure import Metered, measure
from carv_server.bench.load.processes import descendants
from carv_server.bench.load.requests import create_handle, health_target
from carv_server.bench.load.rounds import over_rounds
from carv_server.bench.load.wire import Target
from carv_server.demo.process import Server, running_server

__all__ = ["EVENT_SHAPE", "Cell", "Desk", "Results", "Scale", "latents", "so_many"]

EVENT_SHAPE = (4, 64, 64)
"""float32: 64 KiB a render."""
_HEALTH_PAUSE_SECONDS = 0.05
_EXTRA_SECONDS = 0.5  # a companion outlasts the window that it accompanies

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        seconds, warm_seconds: of a window.
    """

    rounds: int
    seconds: float
    warm_seconds: float


@dataclass(frozen=True)
class Cell:
    """One load, again in each round.

    Attributes:
        payloads: request bytes by label.
        rate: of an open loop; 0 for a closed one.
        pids: of the server that is metered.
        companions: loads that run beside it; what they see is kept too.
        stretch: its windows are so many times longer, where a request is slow.
    """

    name: str
    target: Target
    payloads: Mapping[str, bytes]
    clients: int
    pids: Callable[[], Sequence[int]]
    rate: float = 0.0
    pause_seconds: float = 0.0
    companions: Sequence[Cell] = ()
    stretch: float = 1.0


@dataclass
class Results:
    """Windows by cell, one a round, and the bare model's rounds where it was measured."""

    windows: dict[str, list[Metered]] = field(default_factory=dict[str, list[Metered]])
    bare: list[Forwards] = field(default_factory=list[Forwards])

    def over(self, cell: str, of: Callable[[Metered], float]) -> Measured:
        """Mean over rounds of a number of each window."""
        return over_rounds([of(window) for window in self.windows[cell]])

    def against_bare(self, cell: str, of: Callable[[Metered, Forwards], float]) -> Measured:
        """Mean over rounds of a number of each window and of the same round's bare model."""
        pairs = zip(self.windows[cell], self.bare, strict=False)
        return over_rounds([of(window, bare) for window, bare in pairs])

    def failed(self, cell: str) -> str:
        """Requests that failed in all rounds, and what the first failure said."""
        failures = [w.first.failures for w in self.windows[cell] if w.first.failures]
        count = sum(sum(each.values()) for each in failures)
        return f"{count}: {next(iter(failures[0]))}".replace("|", "/") if count else "0"


@dataclass
class Desk:
    """One run.

    Attributes:
        folder: for teachers, payloads and logs.
        advance: books seconds of work done.
        foreign_cores: of the windows without companions.
    """

    book: Book
    scale: Scale
    folder: Path
    say: Callable[[str], None]
    advance: Callable[[float], None]
    foreign_cores: list[float] = field(default_factory=list[float])

    @contextmanager
    def server(self, name: str, arguments: Sequence[str]) -> Iterator[Server]:
        """``carv serve`` as a user would start it, on one torch thread.

        Raises:
            ServerFailed: it is not healthy in time.
        """
        self.say(f"{name}: starting the server")
        with running_server(self.folder / f"{name}.log", threads=1, arguments=arguments) as server:
            yield server

    def measure(self, title: str, cells: Sequence[Cell], bare: Bare | None = None) -> Results:
        """Every cell in turn, round after round, the bare model first in each.

        Raises:
            DriverFailed, BareFailed: a process ended early.
        """
        results = Results({cell.name: [] for cell in cells})
        for number in range(self.scale.rounds):
            if bare is not None:
                self.say(f"{title}, round {number + 1}: bare model")
                results.bare.append(measure_bare(bare))
                self.advance(self.scale.seconds)
            for cell in cells:
                self.say(f"{title}, round {number + 1}: {cell.name}")
                seconds = cell.stretch * self.scale.seconds
                loads = [self._load(cell, number, seconds)] + [
                    self._load(each, number, seconds + _EXTRA_SECONDS) for each in cell.companions
                ]
                window = measure(loads, cell.pids)
                results.windows[cell.name].append(window)
                if not cell.companions:
                    self.foreign_cores.append(window.foreign_cores)
                self.advance(seconds + self.scale.warm_seconds)
        return results

    def _load(self, cell: Cell, number: int, seconds: float) -> Load:
        files: dict[str, str] = {}
        for i, (label, payload) in enumerate(cell.payloads.items()):
            path = self.folder / f"payload-{cell.name.replace('/', ' ')}-{i}"
            path.write_bytes(payload)
            files[label] = str(path)
        return Load(
            target=cell.target,
            payloads=files,
            clients=cell.clients,
            seconds=seconds,
            warm_seconds=self.scale.warm_seconds,
            rate=cell.rate,
            pause_seconds=cell.pause_seconds,
            seed=number,
        )

    @staticmethod
    def pids(server: Server) -> Callable[[], Sequence[int]]:
        return lambda: descendants(server.pid)

    @staticmethod
    def handle(server: Server, prompt: str | None = None, teacher: str = "") -> str:
        return create_handle(server.address, prompt, teacher)

    def health(self, server: Server) -> Cell:
        """Asks for health twenty times a second from a process of its own."""
        return Cell(
            "health",
            health_target(server.address),
            {"health": b""},
            1,
            self.pids(server),
            pause_seconds=_HEALTH_PAUSE_SECONDS,
        )


def so_many(clients: int) -> str:
    """In words."""
    return "1 client" if clients == 1 else f"{clients} clients"


def latents(renders: int, event_shape: Sequence[int] = EVENT_SHAPE) -> Float32Array:
    """Float32 [renders, *event_shape], always the same."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(renders, *event_shape)).astype(np.float32)
