"""What the sections of one run share, and where their tables and figures go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from carv_server.bench.direct import Seeds
from carv_server.bench.grid import GridStudy
from carv_server.bench.kernels import Bank, make_bank
from carv_server.bench.laboratory import Laboratory
from carv_server.bench.serving import LiveServer
from carv_server.bench.settings import Scale
from carv_server.bench.states import FieldStage, State, Studio
from carv_server.bench.tables import Origin, Table, write_table
from carv_server.bench.targets import Target

__all__ = ["Session"]


@dataclass
class Session:
    """State of a run; sections add to it in their order."""

    laboratory: Laboratory
    server: LiveServer
    studio: Studio
    scale: Scale
    seeds: Seeds
    output: Path
    origin: Origin
    threads: int
    say: Callable[[str], None]
    advance: Callable[[float], None]
    stages: list[FieldStage] = field(default_factory=list[FieldStage])
    states: list[State] = field(default_factory=list[State])
    samples: list[State] = field(default_factory=list[State])
    studies: list[GridStudy] = field(default_factory=list[GridStudy])
    tables: dict[str, Table] = field(default_factory=dict[str, Table])
    figures: dict[str, str] = field(default_factory=dict[str, str])
    targets: list[Target] = field(default_factory=list[Target])
    _banks: dict[str, Bank] = field(default_factory=dict[str, Bank])

    def write(self, table: Table) -> None:
        """Keeps the table, and writes it: a run that is broken off leaves what was done."""
        self.tables[table.name] = table
        write_table(table, self.output, self.origin)

    def replace_target(self, target: Target) -> None:
        """Adds a target, or measures it anew."""
        self.targets = [each for each in self.targets if each.claim != target.claim] + [target]

    def draw(self, name: str, caption: str, plot: Callable[[Path], None]) -> None:
        """Writes ``NAME.png``."""
        plot(self.output / f"{name}.png")
        self.figures[name] = caption

    def bank(self, state: State) -> Bank:
        """The state's bank, made once."""
        if state.name not in self._banks:
            scale = self.scale
            seed = self.seeds.take(1).start
            self._banks[state.name] = make_bank(
                self.laboratory, state, scale.bank_grid, scale.bank_noises, seed
            )
        return self._banks[state.name]
