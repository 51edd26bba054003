"""Where a benchmark of servers keeps its tables, figures and targets, and how it writes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carv_server.bench.tables import Origin, Table, markdown, write_table
from carv_server.bench.targets import Target, target_lines

__all__ = ["Book", "Chapter"]


@dataclass(frozen=True)
class Chapter:
    """A part of the document: text, then tables by name, each after its figure if it has one."""

    title: str
    text: str
    tables: Sequence[str]


@dataclass
class Book:
    """Results of one run, written as they come: a run that is broken off leaves what was done.

    Attributes:
        name: of the benchmark, as in ``carv bench NAME``.
        figures: caption by name; a figure goes with the table of its name.
    """

    name: str
    output: Path
    origin: Origin
    tables: dict[str, Table] = field(default_factory=dict[str, Table])
    figures: dict[str, str] = field(default_factory=dict[str, str])
    targets: list[Target] = field(default_factory=list[Target])
    notes: list[str] = field(default_factory=list[str])

    def write(self, table: Table) -> None:
        """Keeps a table and writes ``NAME.csv`` and ``NAME.md``."""
        self.tables[table.name] = table
        write_table(table, self.output, self.origin)

    def draw(self, name: str, caption: str, plot: Callable[[Path], None]) -> None:
        """Writes ``NAME.png``."""
        plot(self.output / f"{name}.png")
        self.figures[name] = caption

    def write_summary(self, seconds: float, *, finished: bool) -> None:
        """``summary.md``: targets, notes, tables, figures."""
        lines = [f"# carv bench {self.name}", "", self.origin.line(), ""]
        lines.append(
            f"{seconds / 60:.1f} minutes."
            if finished
            else "**Broken off: only what is listed here was finished.**"
        )
        if self.targets:
            lines += ["", *target_lines(self.targets)]
        lines += ["", *(f"- {note}" for note in self.notes)]
        lines += ["", "| table | |", "| --- | --- |"]
        lines += [f"| [{name}]({name}.md) | {t.title} |" for name, t in self.tables.items()]
        lines += ["", "| figure | |", "| --- | --- |"]
        lines += [f"| [{name}]({name}.png) | {text} |" for name, text in self.figures.items()]
        (self.output / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def write_document(
        self, folder: Path, file: str, title: str, text: str, chapters: Sequence[Chapter]
    ) -> None:
        """``FILE.md`` with its figures under ``images/`` and the CSV of every table under
        ``data/FILE/``."""
        images, data = folder / "images", folder / "data" / file
        for each in (images, data):
            each.mkdir(parents=True, exist_ok=True)
        lines = [
            f"# {title}",
            "",
            f"Written by `carv bench {self.name} --docs docs`; every number on this page is of "
            f"one run: {self.origin.line()}. ± is one standard error over interleaved rounds. "
            f"{text} CSV of every table: [data/{file}](data/{file}).",
        ]
        if self.targets:
            lines += ["", "## Targets", "", *target_lines(self.targets)]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        for chapter in chapters:
            present = [name for name in chapter.tables if name in self.tables]
            if not present:
                continue
            lines += ["", f"## {chapter.title}", "", chapter.text]
            for name in present:
                table = self.tables[name]
                lines += ["", f"### {table.title}", "", table.note]
                if name in self.figures:
                    picture = f"{file}_{name}.png"
                    shutil.copyfile(self.output / f"{name}.png", images / picture)
                    lines += ["", f"![{self.figures[name]}](images/{picture})"]
                lines += ["", markdown(table)]
        for name in self.tables:
            shutil.copyfile(self.output / f"{name}.csv", data / f"{name}.csv")
        (folder / f"{file}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
