"""What a convergence run found: numbers, the figure, the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot

from carv_server.bench.convergence_curves import (
    Trace,
    common_end,
    pooled,
    saving,
    saving_interval,
    settled,
)
from carv_server.bench.tables import Origin
from carv_server.demo.experiment import METHODS
from carv_server.demo.settings import BASELINE, CARV, Settings

__all__ = ["SCORES", "Prices", "RunSettings", "convergence_page", "plot_convergence", "summarise"]

SCORES = {
    "probability": "posterior of the prompt, held-out views",
    "margin": "margin to the next prompt",
}
_COLOURS = {BASELINE.name: "#b5541c", CARV.name: "#1f5fa8"}


@dataclass(frozen=True)
class Prices:
    """Seconds upstream of one render, and of one draw of it."""

    upstream: float
    draw: float


@dataclass(frozen=True)
class RunSettings:
    """What all runs shared; ``draws`` is CARV's K, ``iterations`` the baseline's."""

    prompts: Sequence[str]
    seeds: int
    iterations: int
    draws: int
    settings: Settings
    prices: Prices
    origin: Origin


def summarise(traces: Sequence[Trace], run: RunSettings) -> dict[str, Any]:
    """Everything that the page says, as plain types."""
    rng: Callable[[], np.random.Generator] = lambda: np.random.default_rng(5)  # noqa: E731
    groups = {"all": list(traces)} | {
        prompt: [t for t in traces if t.prompt == prompt] for prompt in run.prompts
    }
    return {
        "origin": asdict(run.origin),
        "seeds": run.seeds,
        "prices": asdict(run.prices),
        "savings": {
            score: {
                name: {
                    "share": saving(group, score),
                    "interval": saving_interval(group, score, rng()),
                    "settled": settled(group, score),
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


def plot_convergence(traces: Sequence[Trace], prompts: Sequence[str], path: Path) -> None:
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


def convergence_page(result: Mapping[str, Any], run: RunSettings) -> str:
    """Markdown; the figure is images/convergence.png beside it."""
    settings = run.settings
    lines = [
        "# Convergence at equal compute",
        "",
        f"{len(run.prompts)} prompts, {run.seeds} seeds, guidance {settings.guidance_scale:g}, "
        f"Adam at {settings.learning_rate:g} falling to {settings.final_learning_rate:g}. Compute "
        f"is charged at costs measured first: {1e3 * run.prices.upstream:.0f} ms upstream of a "
        f"render, {1e3 * run.prices.draw:.1f} ms a draw. Plain SDS (uniform, independent draws, "
        f"K = 1) has {run.iterations} iterations; CARV, K = {run.draws} with the server's default "
        f"sampling has as many as cost the same, {result['iterations'][CARV.name]:.0f}. Both "
        "render once a step. Bands are one standard error over runs. *To reach it* is the share "
        "of the compute from which on CARV's mean stays above the baseline's last mean, with a "
        "90 % bootstrap interval over seeds. *Settled* is the share from which on the baseline's "
        "own mean is within two standard errors of its last: where that is early, the baseline "
        "has stopped improving, and what comes after compares two plateaus.",
        "",
        "![score against compute](images/convergence.png)",
        "",
    ]
    for score, label in SCORES.items():
        lines += [
            f"| {label} | plain SDS, last | ± | CARV, last | ± | to reach it | 90 % | settled |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, each in result["savings"][score].items():
            low, high = each["interval"]
            numbers = [each[f"{m.name}_{key}"] for m in METHODS for key in ("mean", "error")]
            lines.append(
                f"| {name} | "
                + " | ".join(f"{value:.3f}" for value in numbers)
                + f" | {_share(each['share'])} | {_share(low)} to {_share(high)} "
                + f"| {_share(each['settled'])} |"
            )
        lines.append("")
    return "\n".join([*lines, run.origin.line(), ""])


def _share(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "never"
