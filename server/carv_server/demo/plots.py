"""The two figures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from carv_server.demo.curves import Band
from carv_server.demo.settings import Method
from carv_server.demo.variance import VarianceStudy

__all__ = ["plot_convergence", "plot_variance"]

_COLOURS = {"baseline": "#b5541c", "uniform": "#b5541c", "carv": "#1f5fa8"}
_SIZE = (9.6, 3.8)


def plot_convergence(
    panels: Mapping[str, Mapping[str, Band]], methods: Sequence[Method], path: Path
) -> None:
    """One panel for each score (its axis label), one curve with its band for each method name."""
    figure, axes = _figure(len(panels))
    for axis, (label, curves) in zip(axes, panels.items(), strict=True):
        for method in methods:
            curve, colour = curves[method.name], _COLOURS[method.name]
            axis.plot(curve.compute, curve.mean, color=colour, label=method.label, marker=".")
            axis.fill_between(curve.compute, curve.low, curve.high, color=colour, alpha=0.18, lw=0)
        axis.set_xlabel("compute: upstream + denoise, seconds")
        axis.set_ylabel(label)
    axes[0].legend(frameon=False, loc="lower right")
    _save(figure, path)


def plot_variance(study: VarianceStudy, labels: Mapping[str, str], path: Path) -> None:
    """Left: variance of one gradient of a random view. Right: the part that the draws cause."""
    figure, axes = _figure(2)
    for name, label in labels.items():
        points = [point for point in study.points if point.method == name]
        milliseconds = [1e3 * point.compute for point in points]
        style: dict[str, Any] = {"color": _COLOURS[name], "marker": "o", "label": label}
        axes[0].plot(milliseconds, [study.total(point) for point in points], **style)
        axes[1].errorbar(
            milliseconds,
            [point.within for point in points],
            yerr=[point.standard_error for point in points],
            capsize=2,
            **style,
        )
        for point in points:
            where = (1e3 * point.compute, point.within)
            axes[1].annotate(
                f"{point.draws}", where, textcoords="offset points", xytext=(4, 4), fontsize=8
            )
    axes[0].axhline(study.between, color="grey", lw=1, ls=":")
    axes[0].annotate(
        "between cameras, B", (0.98, study.between), ha="right", va="bottom", fontsize=8,
        color="grey", xycoords=("axes fraction", "data"),
    )  # fmt: skip
    for axis, label in zip(
        axes, ("variance of a gradient, B + W(K)", "W(K), draws only"), strict=True
    ):
        axis.set_yscale("log")
        axis.set_xlabel("compute of one gradient, milliseconds")
        axis.set_ylabel(label)
    axes[1].legend(frameon=False, loc="upper right")
    _save(figure, path)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    figure, axes = pyplot.subplots(1, panels, figsize=_SIZE, squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
