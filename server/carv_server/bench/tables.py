"""Tables of measured numbers, written as CSV and as Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carv_server.bench.cells import Measured

__all__ = ["Cell", "Origin", "Table", "markdown", "write_table"]

Cell = str | int | float | Measured | None

_DIGITS = 3


@dataclass(frozen=True)
class Origin:
    """Where numbers come from: the command, the machine in one line, the date (ISO)."""

    command: str
    machine: str
    date: str

    def line(self) -> str:
        return f"`{self.command}`, {self.date}, on {self.machine}"


@dataclass(frozen=True)
class Table:
    """Rows under columns; a measured column is shown with its standard error beside it.

    Attributes:
        name: file name without its ending.
        note: what the columns mean, one paragraph.
    """

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list[list[Cell]])

    def add(self, *cells: Cell) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.name}: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(list(cells))

    def measured(self, column: int) -> bool:
        return any(isinstance(row[column], Measured) for row in self.rows)

    def where(self, **wanted: Cell) -> list[Mapping[str, Cell]]:
        """Rows whose named columns have these values, by column."""
        found: list[Mapping[str, Cell]] = []
        for row in self.rows:
            record = dict(zip(self.columns, row, strict=True))
            if all(record[name] == value for name, value in wanted.items()):
                found.append(record)
        return found


def write_table(table: Table, folder: Path, origin: Origin) -> None:
    """``NAME.csv`` and ``NAME.md``; each names the command, the machine and the date."""
    with (folder / f"{table.name}.csv").open("w", newline="", encoding="utf-8") as file:
        for line in (table.title, origin.line()):
            file.write(f"# {line}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_spread(table, list(table.columns), header=True))
        for row in table.rows:
            writer.writerow(_spread(table, row, header=False))
    text = f"# {table.title}\n\n{table.note}\n\n{markdown(table)}\n\n{origin.line()}\n"
    (folder / f"{table.name}.md").write_text(text, encoding="utf-8")


def markdown(table: Table) -> str:
    """The rows as a Markdown table."""
    heads: list[str] = []
    for i, name in enumerate(table.columns):
        heads += [name, "±"] if table.measured(i) else [name]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in table.rows:
        cells: list[str] = []
        for i, cell in enumerate(row):
            if isinstance(cell, Measured):
                cells += [_number(cell.value), _number(cell.error, 2)]
            else:
                text = (
                    _number(cell) if isinstance(cell, float) else str("" if cell is None else cell)
                )
                cells += [text, ""] if table.measured(i) else [text]
        lines.append(_line(cells))
    return "\n".join(lines)


def _spread(table: Table, row: Sequence[Cell], *, header: bool) -> list[str]:
    cells: list[str] = []
    for i, cell in enumerate(row):
        if not table.measured(i):
            cells.append("" if cell is None else str(cell))
        elif isinstance(cell, Measured):
            cells += [f"{cell.value:.6g}", f"{cell.error:.3g}"]
        else:
            text = "" if cell is None else str(cell)
            cells += [text, f"{text} error" if header else ""]
    return cells


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int = _DIGITS) -> str:
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text and 1 <= abs(value) < 1e6 else text
