"""The figures. Every point has its standard error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot, ticker

from carv_server.bench.cells import Measured, mean_of

__all__ = ["Curve", "plot_bars", "plot_curves"]

_COLOURS = {
    "ours": "#1f5fa8",
    "paper": "#b5541c",
    "iid uniform": "#7d7d7d",
    "strata only": "#7b4fa3",
    "weight + antithetic": "#d9a441",
    "oracle proposal": "#3a9a6b",
}
_OTHERS = ("#3a9a6b", "#c2447a", "#1f5fa8", "#8a6d3b", "#7b4fa3")
_MARKERS = "osD^vPX"
_PANEL = (5.0, 3.9)
_DOTS_PER_INCH = 110

Curve = tuple[Sequence[float], Sequence[Measured], Sequence[str] | None]
"""Abscissae, values with errors, and a label for each point or None."""


def plot_bars(
    panels: Mapping[str, Mapping[str, Sequence[Measured]]],
    label: str,
    path: Path,
    *,
    stressed: Collection[str] = (),
) -> None:
    """A panel for each key; in it a bar at the mean of each group's values, and its values as
    dots. A line at 1 is the baseline. Where some names are stressed the others are grey."""
    figure, axes = _figure(len(panels), wide=0.9)
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        for i, (name, values) in enumerate(bars.items()):
            mean = mean_of(values)
            colour = _COLOURS["ours" if name in stressed else "iid uniform"]
            colour = colour if stressed else _colour(name, i)
            axis.bar(i, mean.value, yerr=mean.error, color=colour, capsize=3, alpha=0.85)
            offsets = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
            axis.scatter(
                [i + offset for offset in offsets],
                [value.value for value in values],
                s=9,
                color="black",
                alpha=0.45,
                linewidths=0,
                zorder=3,
            )
            axis.annotate(
                f"{mean.value:.2f}", (i, 0.02), xycoords=("data", "axes fraction"), ha="center",
                fontsize=8, color="white", fontweight="bold",
            )  # fmt: skip
        axis.axhline(1.0, color="black", lw=0.8, ls=":")
        axis.set_xticks(range(len(bars)), list(bars), rotation=28, ha="right", fontsize=8)
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel(label)
    _save(figure, path)


def plot_curves(
    panels: Mapping[str, Mapping[str, Curve]],
    horizontal: str,
    vertical: str,
    path: Path,
    *,
    log_x: bool = False,
    log_y: bool = False,
    baseline: float | None = None,
    ticks: Sequence[str] | None = None,
    joined: bool = True,
    dodge: bool = False,
) -> None:
    """A panel for each key, a curve with error bars for each name in it. Curves of one name have
    one colour in all panels; ``name|style`` draws the curves of one name in other dashes.
    ``ticks`` names the abscissae 0, 1, 2, ...; without ``joined`` points stand alone."""
    figure, axes = _figure(len(panels))
    names = list(dict.fromkeys(n.partition("|")[0] for panel in panels.values() for n in panel))
    styles = list(dict.fromkeys(n.partition("|")[2] for panel in panels.values() for n in panel))
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for full, (x, values, labels) in curves.items():
            name, _, style = full.partition("|")
            place = names.index(name)
            colour = _colour(name, place)
            if ticks is not None or dodge:
                # Side by side, so that error bars do not hide each other.
                shift = (place - (len(names) - 1) / 2) * 0.06
                x = [v * (1 + shift / 2) if log_x else v + shift for v in x]
            axis.errorbar(
                x,
                [v.value for v in values],
                yerr=[v.error for v in values],
                color=colour,
                marker=_MARKERS[styles.index(style) % len(_MARKERS)],
                ls=("-", "--", ":", "-.")[styles.index(style) % 4] if joined else "",
                ms=4,
                lw=1.3,
                capsize=2,
                label=f"{name}, {style}" if style else name,
            )
            for where, value, text in zip(x, values, labels or [], strict=False):
                axis.annotate(
                    text, (where, value.value), textcoords="offset points", xytext=(4, 3),
                    fontsize=6.5, color=colour,
                )  # fmt: skip
        if baseline is not None:
            axis.axhline(baseline, color="black", lw=0.8, ls=":")
        if log_x:
            axis.set_xscale("log")
            marks = sorted({x for curve in curves.values() for x in curve[0]})
            if len(marks) <= 10:
                axis.set_xticks(marks, [f"{mark:g}" for mark in marks])
                axis.minorticks_off()
            else:
                _plain_log(axis.xaxis)
        if ticks is not None:
            axis.set_xlim(-0.4, len(ticks) - 0.6)
            tilted = max(len(tick) for tick in ticks) > 5
            axis.set_xticks(
                range(len(ticks)),
                list(ticks),
                rotation=25 if tilted else 0,
                ha="right" if tilted else "center",
                fontsize=8,
            )
        if log_y:
            axis.set_yscale("log")
            _plain_log(axis.yaxis)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(horizontal)
    axes[0].set_ylabel(vertical)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = len(labels) if len(labels) <= 4 and len(panels) > 1 else min(3, len(labels))
    rows = -(-len(labels) // columns)
    figure.tight_layout(rect=(0, 0.05 * rows + 0.01, 1, 1))
    figure.legend(handles, labels, frameon=False, loc="lower center", ncols=columns, fontsize=8)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    pyplot.close(figure)


def _plain_number(value: float, position: int | None) -> str:
    return f"{value:g}"


def _plain_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, in plain numbers."""
    axis.set_minor_locator(ticker.LogLocator(subs=(2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(_plain_number))
    axis.set_minor_formatter(ticker.FuncFormatter(_plain_number))


def _colour(name: str, place: int) -> str:
    return _COLOURS.get(name, _OTHERS[place % len(_OTHERS)])


def _figure(panels: int, wide: float = 1.0) -> tuple[Any, list[Any]]:
    size = (max(5.6, _PANEL[0] * wide * panels), _PANEL[1])
    figure, axes = pyplot.subplots(1, panels, figsize=size, squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    pyplot.close(figure)
