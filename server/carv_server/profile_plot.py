"""The figure of ``carv profile --plot``: ||f|| over t and the laws that t is drawn from, in the
kind of Figure 22 of arXiv 2605.21489. Imports matplotlib only once a plot is asked for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_client import TeacherProfile

__all__ = ["load", "plot_profile"]

Float64Array = npt.NDArray[np.float64]

_PROPOSALS = {
    "prior": ("prior p", "#7a7a7a", ":"),
    "weight": ("weight", "#b5541c", "--"),
    "adaptive": ("adaptive", "#2a7d4f", "-."),
    "oracle": ("oracle", "#1f5fa8", "-"),
}
_NORM_COLOUR = "#c9b37c"
_MEAN_COLOUR = "#6b5a2b"


def load() -> Callable[[TeacherProfile, Path], None]:
    """``plot_profile``, once it is known that it can be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    # It takes seconds, and is not installed everywhere.
    importlib.import_module("matplotlib.figure")
    return plot_profile


def plot_profile(profile: TeacherProfile, path: Path) -> None:
    """Draw ||f|| with its standard error and the proposals over it; the suffix of ``path`` is the
    format.

    Raises:
        OSError: ``path`` cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    _norms(left, profile)
    _proposals(right, profile)
    _log_snr_axis(left, profile)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


def _norms(axis: Any, profile: TeacherProfile) -> None:
    """Root mean square of f by bin, with one standard error, and the part that is a mean."""
    edges = np.array([each.first_timestep for each in profile.bins], dtype=np.float64)
    edges = np.append(edges, profile.bins[-1].last_timestep + 1.0)
    second = np.array([each.second_moment for each in profile.bins])
    error = np.array([each.second_moment_error for each in profile.bins])
    mean = np.array([each.squared_mean for each in profile.bins])
    norm = np.sqrt(second)
    axis.stairs(norm, edges, fill=True, color=_NORM_COLOUR, alpha=0.45, label="‖f‖")
    axis.errorbar(
        (edges[:-1] + edges[1:]) / 2,
        norm,
        # d sqrt(m) = dm / (2 sqrt(m))
        yerr=np.divide(error, 2.0 * norm, out=np.zeros_like(error), where=norm > 0),
        fmt="none",
        ecolor=_MEAN_COLOUR,
        elinewidth=1.4,
        capsize=2.5,
        label="± one standard error",
    )
    axis.stairs(
        np.sqrt(np.maximum(mean, 0.0)), edges, color=_MEAN_COLOUR, linewidth=1.2, label="‖E f‖"
    )
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(0.0, 1.15 * float(np.max(norm)) or 1.0)
    axis.set_xlabel("timestep t")
    axis.set_ylabel("‖f(t, ε)‖, root mean square")
    axis.grid(alpha=0.2)


def _proposals(axis: Any, profile: TeacherProfile) -> None:
    """Each law's density relative to a uniform one over the support of the prior."""
    support = np.flatnonzero(profile.prior)
    highest = 0.0
    gains = {"weight": profile.weight_variance, "oracle": profile.oracle_variance}
    for name, (label, colour, style) in _PROPOSALS.items():
        table: Float64Array | None = getattr(profile, name)
        if table is None:
            continue
        density = table[support] * len(support)
        highest = max(highest, float(density.max()))
        if gains.get(name, 0.0) > 0:
            label += f", gain {profile.prior_variance / gains[name]:.2f}"
        axis.plot(support + 0.5, density, color=colour, linestyle=style, linewidth=1.6, label=label)
    axis.set_ylim(0.0, 1.15 * highest)
    axis.set_ylabel("proposal density, uniform = 1")


def _log_snr_axis(axis: Any, profile: TeacherProfile) -> None:
    """Ticks of log-SNR along the top, between the bins' centres."""
    centres = np.array(
        [(each.first_timestep + each.last_timestep + 1) / 2 for each in profile.bins]
    )
    values = np.array([each.log_snr for each in profile.bins])
    inside = range(math.ceil(values.min()), math.floor(values.max()) + 1)
    if len(inside) < 2 or np.any(np.diff(values) >= 0):
        return
    inside = inside[:: max(1, len(inside) // 8)]
    top = axis.secondary_xaxis("top")
    where = np.interp(-np.array(inside, dtype=np.float64), -values, centres)
    top.set_xticks(where, [f"{value:+d}" for value in inside])
    top.set_xlabel("log-SNR")
