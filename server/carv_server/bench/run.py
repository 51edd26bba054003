"""The benchmark from end to end: teacher, states, sections, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from carv_server.bench.attribution_section import measure_attribution
from carv_server.bench.breadth_section import measure_breadth
from carv_server.bench.direct import Seeds
from carv_server.bench.grid_section import measure_grid
from carv_server.bench.headline_section import measure_headline
from carv_server.bench.laboratory import Laboratory
from carv_server.bench.planner_section import measure_planning
from carv_server.bench.refine_section import measure_refinement
from carv_server.bench.sections import wanted_sections
from carv_server.bench.serving import LiveServer
from carv_server.bench.session import Session
from carv_server.bench.settings import PROMPTS, Scale
from carv_server.bench.states import Studio, draw_states, optimise_field, sample_state
from carv_server.bench.strata_section import measure_strata
from carv_server.bench.summary import write_documents, write_summary
from carv_server.bench.tables import Origin
from carv_server.bench.weightings_section import measure_weightings
from carv_server.demo.convention import embedded_folder, read_convention
from carv_server.demo.encoder import ImageEncoder
from carv_server.demo.machine import describe_machine
from carv_server.demo.progress import Progress
from carv_server.teachers.registry import EMBEDDED, load_teacher

__all__ = ["Bench", "machine_line", "run_variance"]

_EVALUATION_SECONDS = 1 / 450  # expected, for the progress bar
_STEP_SECONDS = 0.1  # of one iteration of an optimisation, its evaluations left out
_FIRST_SEED = 1 << 44

Section = Callable[[Session], object]

SECTIONS: Mapping[str, Section] = {
    "headline": measure_headline,
    "breadth": measure_breadth,
    "grid": measure_grid,
    "strata": measure_strata,
    "weightings": measure_weightings,
    "attribution": measure_attribution,
    "planning": measure_planning,
    "refinement": measure_refinement,
}


@dataclass(frozen=True)
class Bench:
    """One run.

    Attributes:
        seconds: expected, for the progress bar.
        only: sections by name (``SECTION_NAMES``); empty: all.
        documents: folder that gets ``variance.md`` and the figures, or None.
        command, date: for the tables.
    """

    scale: Scale
    output: Path
    seconds: float
    threads: int
    documents: Path | None
    command: str
    date: str
    only: Sequence[str] = ()


def machine_line() -> str:
    """The machine on one line."""
    machine = describe_machine()
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, torch {machine['torch']} with "
        f"{machine['client_threads']} threads"
    )


def run_variance(bench: Bench) -> Session:
    """Writes every table and figure to ``bench.output`` as its section ends, then ``summary.md``.

    Raises:
        KeyboardInterrupt: what was finished is written, with a summary that says so.
    """
    torch.set_num_threads(bench.threads)
    started = time.monotonic()
    teacher = load_teacher(EMBEDDED, device=torch.device("cpu"), dtype=torch.float32)
    origin = Origin(bench.command, machine_line(), bench.date)
    with Progress(bench.seconds) as progress:
        laboratory = Laboratory(
            teacher, lambda count: progress.advance(count * _EVALUATION_SECONDS)
        )
        with LiveServer(laboratory) as server:
            session = Session(
                laboratory=laboratory,
                server=server,
                studio=Studio(read_convention(embedded_folder()), ImageEncoder(embedded_folder())),
                scale=bench.scale,
                seeds=Seeds(_FIRST_SEED),
                output=bench.output,
                origin=origin,
                threads=bench.threads,
                say=progress.stage,
                advance=progress.advance,
            )
            finished = False
            try:
                _prepare(session)
                for name in wanted_sections(bench.only):
                    SECTIONS[name](session)
                finished = True
            finally:
                write_summary(session, time.monotonic() - started, finished=finished)
    if bench.documents is not None:
        write_documents(session, bench.documents)
    return session


def _prepare(session: Session) -> None:
    """Fields, states and samples."""
    scale = session.scale
    for i, prompt in enumerate(scale.prompts):
        session.say(f"optimising {prompt!r}")
        stages = optimise_field(
            session.laboratory,
            session.server,
            session.studio,
            prompt,
            scale.stops,
            seed=i + 1,
            progress=lambda: session.advance(_STEP_SECONDS),
        )
        session.stages += stages
        states = draw_states(session.laboratory, session.studio, stages, seed=100 + i)
        if scale.kinds is None:
            kinds = ("middle", "half noise", "sample")
            states = [each for each in states if each.kind == kinds[i % len(kinds)]]
        session.states += states
    rng = np.random.default_rng(7)
    session.say("sampling the teacher")
    session.samples += [
        replace(sample_state(session.laboratory, prompt, rng), kind="another sample")
        for prompt in PROMPTS[: scale.bank_prompts]
    ]
