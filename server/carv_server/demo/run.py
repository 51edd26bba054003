"""The demo from end to end: server, experiment, pictures, report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from carv_client import TeacherClient
from carv_server.demo.convention import Convention
from carv_server.demo.encoder import ImageEncoder
from carv_server.demo.experiment import METHODS, Experiment, Plan, compare
from carv_server.demo.machine import describe_machine
from carv_server.demo.metrics import Metrics, collect
from carv_server.demo.optimise import Studio
from carv_server.demo.plots import plot_convergence, plot_variance
from carv_server.demo.process import running_server
from carv_server.demo.progress import Progress
from carv_server.demo.report import render_report
from carv_server.demo.turntable import side_by_side, turntable_frames, write_gif

__all__ = ["Demo", "draw", "run_demo"]

_START_SECONDS = 10.0
_PICTURE_SECONDS = 10.0
_FRAMES = 36
_PIXELS = 144
_SAMPLES = 48


@dataclass(frozen=True)
class Demo:
    """What to make, of what, and where to."""

    prompt: str
    """As ``Convention.check_prompt`` returns it."""
    convention: Convention
    folder: Path
    """The teacher's folder; the server serves it, and its image encoder is used here."""
    output: Path
    plan: Plan
    threads: int
    """Threads of torch here, and in the server."""
    command: str
    """The command line, for the report."""


def run_demo(demo: Demo) -> Metrics:
    """Writes turntables, plots, ``report.html`` and ``metrics.json`` to ``demo.output``.

    Raises ServerFailed where the server does not start; it is stopped in any case.
    """
    start = time.monotonic()
    demo.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(demo.threads)
    expected = _START_SECONDS + demo.plan.seconds() + _PICTURE_SECONDS
    with Progress(expected) as progress:
        progress.stage("starting the server")
        log = demo.output / "server.log"
        teachers = ["--teacher", f"{demo.folder.name}={demo.folder}"]
        with (
            running_server(log, threads=demo.threads, arguments=teachers) as server,
            TeacherClient(server.address) as client,
        ):
            teacher = client.get_teacher()
            encoder = ImageEncoder(demo.folder)
            studio = Studio.open(client, demo.convention, encoder, demo.prompt)
            progress.advance(_START_SECONDS)
            experiment = compare(studio, demo.plan, progress)
        progress.stage("drawing")
        draw(experiment, demo.convention, demo.output)
        progress.advance(_PICTURE_SECONDS)
    metrics = collect(
        experiment,
        demo.plan,
        prompt=demo.prompt,
        command=demo.command,
        teacher={"id": teacher.id, "digest": teacher.digest, "device": teacher.device},
        machine=dict(describe_machine()),
    )
    metrics["wall_seconds"] = time.monotonic() - start
    (demo.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (demo.output / "report.html").write_text(render_report(metrics), encoding="utf-8")
    return metrics


def draw(
    experiment: Experiment, convention: Convention, output: Path, *, pixels: int = _PIXELS
) -> None:
    """Turntables of the first seed, and both figures."""
    columns = [
        turntable_frames(
            experiment.runs[method.name][0].run.field,
            convention,
            count=_FRAMES,
            size=pixels,
            samples=_SAMPLES,
        )
        for method in METHODS
    ]
    for method, frames in zip(METHODS, columns, strict=True):
        write_gif(frames, output / f"turntable_{method.name}.gif")
    labels = [method.label for method in METHODS]
    write_gif(side_by_side(columns, labels), output / "turntable.gif")
    panels = {
        label: {method.name: experiment.curve(method.name, score) for method in METHODS}
        for label, score in (
            ("posterior of the prompt, held-out views", "probability"),
            ("margin to the next prompt", "margin"),
        )
    }
    plot_convergence(panels, METHODS, output / "convergence.png")
    plot_variance(experiment.variance, experiment.variance_labels, output / "variance.png")
