"""Convergence over prompts and seeds: plain SDS against CARV at equal measured compute.

The demo's experiment (``carv_server.demo``) for several prompts, pooled. An iteration costs
c_up + K c_den seconds, both measured first, so that all runs are charged alike. A curve is the
mean of runs interpolated to common seconds of compute; its band is one standard error over runs.
The saving is the share of the compute from which on CARV's mean stays above the baseline's last
mean, with an interval by bootstrap over seeds within prompts.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import numpy.typing as npt
import torch

matplotlib.use("Agg")

from matplotlib import pyplot

from carv_client import TeacherClient
from carv_server.bench.tables import Origin
from carv_server.demo.cameras import View
from carv_server.demo.compute import PricedMeter
from carv_server.demo.convention import embedded_folder, read_convention
from carv_server.demo.encoder import ImageEncoder
from carv_server.demo.experiment import METHODS, held_out_views
from carv_server.demo.optimise import Studio, optimise
from carv_server.demo.process import running_server
from carv_server.demo.progress import Progress
from carv_server.demo.score import Classifier
from carv_server.demo.settings import BASELINE, CARV, Settings

__all__ = ["Convergence", "Curve", "Trace", "common_end", "pooled", "run_convergence", "saving"]

FloatArray = npt.NDArray[np.float64]

SCORES = {
    "probability": "posterior of the prompt, held-out views",
    "margin": "margin to the next prompt",
}
_LOOKS = 9
_LOOK_SECONDS = 1.0
_ITERATION_SECONDS = 0.08  # expected, for the progress bar
_PRICE_SECONDS = 2.0
_PRICE_ROUNDS = 4
_BOOTSTRAPS = 1000
_COLOURS = {BASELINE.name: "#b5541c", CARV.name: "#1f5fa8"}


@dataclass(frozen=True)
class Trace:
    """One run: its scores at seconds of compute, ``[P]`` each."""

    prompt: str
    method: str
    seed: int
    compute: Sequence[float]
    scores: Mapping[str, Sequence[float]]
    iterations: int


@dataclass(frozen=True)
class Curve:
    """Mean over runs and its standard error at seconds of compute, each ``[P]``."""

    compute: FloatArray
    mean: FloatArray
    error: FloatArray


@dataclass(frozen=True)
class Prices:
    """Seconds upstream of one render, and of one draw of it."""

    upstream: float
    draw: float


@dataclass(frozen=True)
class Convergence:
    """What to run and where to write."""

    prompts: Sequence[str]
    seeds: int
    iterations: int
    """Of the baseline; CARV gets as many as cost the same."""
    threads: int
    output: Path
    documents: Path | None
    """Folder that gets ``convergence.md`` and the figure, too."""
    origin: Origin


def run_convergence(plan: Convergence) -> dict[str, Any]:
    """Runs everything; writes convergence.csv, convergence.json, convergence.md and
    images/convergence.png. Interrupted, it leaves the runs done so far in convergence.csv."""
    torch.set_num_threads(plan.threads)
    settings = Settings(budget=plan.iterations * _ITERATION_SECONDS, checkpoints=_LOOKS)
    runs = len(plan.prompts) * plan.seeds * len(METHODS)
    work = runs * (settings.budget + _LOOKS * _LOOK_SECONDS)
    work += _PRICE_ROUNDS * len(METHODS) * _PRICE_SECONDS
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
                prices = _measure_prices(studio, settings, plan.seeds, views, progress)
                budget = plan.iterations * (prices.upstream + BASELINE.draws * prices.draw)
                settings = replace(settings, budget=budget)
            # Methods take turns within a seed, so that a machine that slows down slows both.
            for seed in range(plan.seeds):
                for method in METHODS:
                    progress.stage(f"{prompt}: seed {seed + 1} of {plan.seeds}, {method.label}")
                    meter = PricedMeter(
                        settings.budget,
                        upstream_price=prices.upstream,
                        draw_price=prices.draw,
                        draws=method.draws,
                    )
                    run = optimise(studio, method, seed, settings, views, progress.advance, meter)
                    scores = [classifier.score(look.latents.numpy()) for look in run.looks]
                    progress.advance(_LOOKS * _LOOK_SECONDS)
                    traces.append(
                        Trace(
                            prompt,
                            method.name,
                            seed,
                            [look.compute for look in run.looks],
                            {name: [getattr(s, name) for s in scores] for name in SCORES},
                            run.meter.iterations,
                        )
                    )
                    _write_traces(traces, plan)
    result = _result(traces, plan, prices)
    (plan.output / "convergence.json").write_text(json.dumps(_plain(result), indent=2) + "\n")
    text = _page(result, plan)
    for folder in filter(None, (plan.output, plan.documents)):
        (folder / "images").mkdir(exist_ok=True)
        _plot(traces, plan.prompts, folder / "images" / "convergence.png")
        (folder / "convergence.md").write_text(text, encoding="utf-8")
    return result


def pooled(traces: Sequence[Trace], method: str, score: str, end: float) -> Curve:
    """Mean over the runs of a method.

    Args:
        end: seconds that every run has spent; the curve ends there.
    """
    chosen = [trace for trace in traces if trace.method == method]
    axis = np.minimum(np.mean([trace.compute for trace in chosen], axis=0), end)
    values: FloatArray = np.empty((len(chosen), len(axis)))
    for row, trace in zip(values, chosen, strict=True):
        row[:] = np.interp(axis, trace.compute, trace.scores[score])
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * axis
    return Curve(axis, values.mean(axis=0), error)


def common_end(traces: Sequence[Trace]) -> float:
    """Seconds that every run has spent."""
    return min(trace.compute[-1] for trace in traces)


def saving(traces: Sequence[Trace], score: str) -> float:
    """Share of the compute from which on CARV's mean stays above the baseline's last; infinite
    where it ends below."""
    end = common_end(traces)
    level = float(pooled(traces, BASELINE.name, score, end).mean[-1])
    curve = pooled(traces, CARV.name, score, end)
    below = np.flatnonzero(curve.mean < level)
    if not len(below):
        return float(curve.compute[0] / end)
    last = int(below[-1]) + 1
    if last == len(curve.mean):
        return float("inf")
    x, y = curve.compute[last - 1 : last + 1], curve.mean[last - 1 : last + 1]
    return float((x[0] + (level - y[0]) / (y[1] - y[0]) * (x[1] - x[0])) / end)


def saving_interval(
    traces: Sequence[Trace], score: str, rng: np.random.Generator
) -> tuple[float, float]:
    """Bootstrap over seeds within prompts: the 5 and 95 % quantiles of the saving."""
    found: list[float] = []
    cells: dict[tuple[str, int], list[Trace]] = {}
    for trace in traces:
        cells.setdefault((trace.prompt, trace.seed), []).append(trace)
    prompts = sorted({prompt for prompt, _ in cells})
    seeds = sorted({seed for _, seed in cells})
    for _ in range(_BOOTSTRAPS):
        sample = [
            trace
            for prompt in prompts
            for seed in rng.choice(seeds, len(seeds))
            for trace in cells[prompt, int(seed)]
        ]
        found.append(saving(sample, score))
    low, high = np.quantile(found, [0.05, 0.95], method="nearest")
    return float(low), float(high)


def _measure_prices(
    studio: Studio,
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
        for method in METHODS:
            # A seed of its own, and so a history: no measured run starts warm.
            meter = optimise(studio, method, seed, short, views[:1], progress.advance).meter
            upstream.append(meter.upstream / meter.iterations)
            draw.append(meter.denoise / meter.iterations / method.draws)
    # A draw's cost falls with K, as rows share a forward; the larger K's is charged to both.
    last = slice(len(METHODS), None)
    return Prices(float(np.median(upstream[last])), float(np.median(draw[last][1::2])))


def _result(traces: Sequence[Trace], plan: Convergence, prices: Prices) -> dict[str, Any]:
    rng: Callable[[], np.random.Generator] = lambda: np.random.default_rng(5)  # noqa: E731
    groups = {"all": list(traces)} | {
        prompt: [t for t in traces if t.prompt == prompt] for prompt in plan.prompts
    }
    return {
        "origin": asdict(plan.origin),
        "seeds": plan.seeds,
        "prices": asdict(prices),
        "savings": {
            score: {
                name: {
                    "share": saving(group, score),
                    "interval": saving_interval(group, score, rng()),
                    **{
                        f"{method.name}_{key}": float(getattr(curve, key)[-1])
                        for method in METHODS
                        for curve in [pooled(group, method.name, score, common_end(group))]
                        for key in ("mean", "error")
                    },
                }
                for name, group in groups.items()
            }
            for score in SCORES
        },
        "iterations": {
            method.name: float(np.mean([t.iterations for t in traces if t.method == method.name]))
            for method in METHODS
        },
    }


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


def _plot(traces: Sequence[Trace], prompts: Sequence[str], path: Path) -> None:
    """A panel for all prompts and one for each; bands are one standard error over runs."""
    figure, axes = pyplot.subplots(
        len(SCORES), 1 + len(prompts), figsize=(3.4 * (1 + len(prompts)), 3.0 * len(SCORES)),
        squeeze=False,
    )  # fmt: skip
    groups = {"all prompts": list(traces)} | {
        prompt: [t for t in traces if t.prompt == prompt] for prompt in prompts
    }
    for row, (score, label) in zip(axes, SCORES.items(), strict=True):
        row[0].set_ylabel(label, fontsize=9)
        for axis, (name, group) in zip(row, groups.items(), strict=True):
            end = common_end(group)
            for method in METHODS:
                curve = pooled(group, method.name, score, end)
                colour = _COLOURS[method.name]
                axis.plot(curve.compute, curve.mean, color=colour, label=method.label, marker=".")
                low, high = curve.mean - curve.error, curve.mean + curve.error
                axis.fill_between(curve.compute, low, high, color=colour, alpha=0.2, lw=0)
            level = pooled(group, BASELINE.name, score, end).mean[-1]
            axis.axhline(level, color=_COLOURS[BASELINE.name], lw=0.8, ls=":")
            axis.set_title(name, fontsize=10)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("compute: upstream + denoise, seconds", fontsize=9)
    axes[0][0].legend(frameon=False, loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _page(result: Mapping[str, Any], plan: Convergence) -> str:
    lines = [
        "# Convergence at equal compute",
        "",
        f"{len(plan.prompts)} prompts, {plan.seeds} seeds. Compute is charged at costs measured "
        f"first: {1e3 * result['prices']['upstream']:.0f} ms upstream of a render, "
        f"{1e3 * result['prices']['draw']:.1f} ms a draw. Plain SDS (uniform, independent draws, "
        f"K = 1) has {plan.iterations} iterations; {CARV.label} with the server's default "
        f"sampling has as many as cost the same, {result['iterations'][CARV.name]:.0f}. Both "
        "render once a step. Bands are one standard error over runs; the saving is the share of "
        "the compute from which on CARV's mean stays above the baseline's last mean, with a 90 % "
        "bootstrap interval over seeds.",
        "",
        "![score against compute](images/convergence.png)",
        "",
    ]
    for score, label in SCORES.items():
        lines += [
            f"| {label} | plain SDS, last | ± | CARV, last | ± | compute to reach it | 90 % |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, each in result["savings"][score].items():
            low, high = each["interval"]
            numbers = [each[f"{m.name}_{key}"] for m in METHODS for key in ("mean", "error")]
            lines.append(
                f"| {name} | "
                + " | ".join(f"{value:.3f}" for value in numbers)
                + f" | {each['share']:.2f} | {low:.2f} to {high:.2f} |"
            )
        lines.append("")
    return "\n".join([*lines, plan.origin.line(), ""])
