"""Convergence over prompts and seeds: plain SDS against CARV at equal measured compute.

The demo's experiment (``carv_server.demo``) for several prompts, pooled. An iteration costs
c_up + K c_den seconds, both measured first, so that all runs are charged alike, whatever
else the machine does.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from carv_client import TeacherClient
from carv_server.bench.convergence_curves import Trace
from carv_server.bench.convergence_page import (
    SCORES,
    Prices,
    RunSettings,
    convergence_page,
    plot_convergence,
    summarise,
)
from carv_server.bench.tables import Origin
from carv_server.demo.cameras import View
from carv_server.demo.compute import PricedMeter
from carv_server.demo.convention import embedded_folder, read_convention
from carv_server.demo.encoder import ImageEncoder
from carv_server.demo.experiment import held_out_views
from carv_server.demo.optimise import Studio, optimise
from carv_server.demo.process import running_server
from carv_server.demo.progress import Progress
from carv_server.demo.score import Classifier
from carv_server.demo.settings import BASELINE, CARV, Method, Settings

__all__ = ["Convergence", "run_convergence"]

_LOOKS = 9
_LOOK_SECONDS = 1.0
_ITERATION_SECONDS = 0.08  # expected, for the progress bar
_PRICE_SECONDS = 2.0
_PRICE_ROUNDS = 4


@dataclass(frozen=True)
class Convergence:
    """What to run and where to write."""

    prompts: Sequence[str]
    seeds: int
    iterations: int
    """Of the baseline; CARV gets as many as cost the same."""
    draws: int
    """CARV's K."""
    learning_rate: float
    """Of Adam at the start; it falls to a tenth."""
    guidance_scale: float
    threads: int
    output: Path
    documents: Path | None
    """Folder that gets ``convergence.md`` and the figure, too."""
    origin: Origin


def run_convergence(plan: Convergence) -> dict[str, Any]:
    """Runs everything; writes convergence.csv, convergence.json, convergence.md and
    images/convergence.png. Interrupted, it leaves the runs done so far in convergence.csv."""
    torch.set_num_threads(plan.threads)
    settings = Settings(
        budget=plan.iterations * _ITERATION_SECONDS,
        checkpoints=_LOOKS,
        learning_rate=plan.learning_rate,
        final_learning_rate=plan.learning_rate / 10,
        guidance_scale=plan.guidance_scale,
    )
    methods = (BASELINE, CARV.with_draws(plan.draws))
    runs = len(plan.prompts) * plan.seeds * len(methods)
    work = runs * (settings.budget + _LOOKS * _LOOK_SECONDS)
    work += _PRICE_ROUNDS * len(methods) * _PRICE_SECONDS
    traces: list[Trace] = []
    prices = Prices(0.0, 0.0)
    with (
        Progress(work) as progress,
        running_server(plan.output / "server.log", threads=plan.threads) as server,
        TeacherClient(server.address) as client,
    ):
        convention = read_convention(embedded_folder())
        encoder = ImageEncoder(embedded_folder())
        views = held_out_views(convention)
        for index, prompt in enumerate(plan.prompts):
            studio = Studio.open(client, convention, encoder, prompt)
            classifier = Classifier(studio, views)
            if index == 0:
                progress.stage("measuring costs")
                prices = _measure_prices(studio, methods, settings, plan.seeds, views, progress)
                budget = plan.iterations * (prices.upstream + BASELINE.draws * prices.draw)
                settings = replace(settings, budget=budget)
            # Methods take turns within a seed, so that a machine that slows down slows both.
            for seed in range(plan.seeds):
                for method in methods:
                    progress.stage(f"{prompt}: seed {seed + 1} of {plan.seeds}, {method.label}")
                    meter = PricedMeter(
                        settings.budget,
                        upstream_price=prices.upstream,
                        draw_price=prices.draw,
                        draws=method.draws,
                    )
                    found = optimise(studio, method, seed, settings, views, progress.advance, meter)
                    scores = [classifier.score(look.latents.numpy()) for look in found.looks]
                    progress.advance(_LOOKS * _LOOK_SECONDS)
                    traces.append(
                        Trace(
                            prompt,
                            method.name,
                            seed,
                            [look.compute for look in found.looks],
                            {name: [getattr(s, name) for s in scores] for name in SCORES},
                            found.meter.iterations,
                        )
                    )
                    _write_traces(traces, plan)
    run = RunSettings(
        plan.prompts, plan.seeds, plan.iterations, plan.draws, settings, prices, plan.origin
    )
    result = summarise(traces, run)
    (plan.output / "convergence.json").write_text(json.dumps(_plain(result), indent=2) + "\n")
    text = convergence_page(result, run)
    for folder in filter(None, (plan.output, plan.documents)):
        (folder / "images").mkdir(exist_ok=True)
        plot_convergence(traces, plan.prompts, folder / "images" / "convergence.png")
        (folder / "convergence.md").write_text(text, encoding="utf-8")
    return result


def _measure_prices(
    studio: Studio,
    methods: Sequence[Method],
    settings: Settings,
    seed: int,
    views: Sequence[View],
    progress: Progress,
) -> Prices:
    """Both costs on this machine, from short runs that take turns; the first warms up."""
    short = replace(settings, budget=_PRICE_SECONDS, checkpoints=2)
    upstream: list[float] = []
    draw: list[float] = []
    for _ in range(_PRICE_ROUNDS):
        for method in methods:
            # A seed of its own, and so a history: no measured run starts warm.
            meter = optimise(studio, method, seed, short, views[:1], progress.advance).meter
            upstream.append(meter.upstream / meter.iterations)
            draw.append(meter.denoise / meter.iterations / method.draws)
    # A draw's cost falls with K, as rows share a forward; the larger K's is charged to both.
    last = slice(len(methods), None)
    return Prices(float(np.median(upstream[last])), float(np.median(draw[last][1::2])))


def _plain(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value)
        return {key: _plain(each) for key, each in pairs.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_traces(traces: Sequence[Trace], plan: Convergence) -> None:
    with (plan.output / "convergence.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {plan.origin.line()}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prompt", "method", "seed", "iterations", "compute_seconds", *SCORES])
        for trace in traces:
            for i, seconds in enumerate(trace.compute):
                scores = [f"{trace.scores[name][i]:.6g}" for name in SCORES]
                run = (trace.prompt, trace.method, trace.seed, trace.iterations)
                writer.writerow([*run, f"{seconds:.4g}", *scores])
