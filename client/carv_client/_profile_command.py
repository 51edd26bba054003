"""``carv profile``: where in t the gradient's variance comes from, and what could be gained."""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from carv_client._errors import CarvError
from carv_client._profile_types import ProfileBin, TeacherProfile
from carv_client._progress import ProgressBar, bar
from carv_client._terminal import (
    OK,
    BadFileError,
    Subparsers,
    add_command,
    add_objective,
    check_output,
    complain,
    make_conditioning,
    objective_keywords,
    open_client,
    print_table,
    read_latents,
    report,
)

__all__ = ["Plot", "PlotLoader", "profile_record", "register"]

Plot = Callable[[TeacherProfile, Path], None]
"""Draws a profile to a file whose suffix is the format."""
PlotLoader = Callable[[], Plot]
"""Imports what draws; raises ModuleNotFoundError where it is not installed."""

_PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_BAR_WIDTH = 24
_NEEDS_LATENTS = (
    "--latents is needed: a .npy file with one float array of cached latents, "
    "[renders, *event shape]; `carv teachers` lists the event shape of each teacher"
)


def register(subparsers: Subparsers, load_plot: PlotLoader | None) -> None:
    """Adds ``carv profile``."""
    parser = add_command(
        subparsers,
        "profile",
        "Measure the gradient's size over the noise levels at cached latents, and what each law "
        "of timesteps makes of its variance.",
        timeout=600.0,
    )
    add = parser.add_argument
    add("--latents", type=Path, metavar="LATENTS.npy", help="float array, [renders, *event shape]")
    add_objective(parser)
    add("--bins", type=int, default=24, help="bins over log-SNR (default: %(default)s)")
    add(
        "--draws-per-bin",
        type=int,
        default=8,
        help="draws of each render in each bin, an even number (default: %(default)s)",
    )
    add("--seed", type=int, help="seed of the draws; by default the server picks one")
    add("--history", default="", help="history whose adaptive proposal is reported too")
    add("--warm", action="store_true", help="add what is measured to that history")
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--output", type=Path, metavar="PROFILE.json", help="write the profile as JSON")
    add(
        "--plot",
        type=Path,
        metavar="PROFILE.png",
        help="draw the profile and the proposals (needs carv[demo])",
    )
    parser.set_defaults(run=functools.partial(_run, load_plot))


def _run(load_plot: PlotLoader | None, arguments: argparse.Namespace) -> int:
    if arguments.latents is None:
        return complain(_NEEDS_LATENTS)
    output: Path | None = arguments.output
    plot: Path | None = arguments.plot
    try:
        latents = read_latents(arguments.latents)
        for path in (output, plot):
            if path is not None:
                check_output(path)
        draw = None if plot is None else _load(plot, load_plot)
    except BadFileError as error:
        return complain(str(error))
    try:
        with open_client(arguments) as client, ProgressBar("profile") as show:
            profile = client.profile_teacher(
                latents,
                make_conditioning(client, arguments),
                bins=arguments.bins,
                draws_per_bin=arguments.draws_per_bin,
                seed=arguments.seed,
                history=arguments.history,
                warm=arguments.warm,
                progress=show,
                **objective_keywords(arguments),
            )
    except CarvError as error:
        return report(error)
    record = profile_record(profile)
    if arguments.json:
        print(json.dumps(record, indent=2))
    else:
        _print(profile)
    path = output
    try:
        if output is not None:
            output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if draw is not None and plot is not None:
            path = plot
            draw(profile, plot)
    except OSError as error:  # which knows no file where a disk is full
        return complain(f"{path} cannot be written: {error.strerror}")
    return OK


def _load(path: Path, load_plot: PlotLoader | None) -> Plot:
    if path.suffix.lower() not in _PLOT_SUFFIXES:
        raise BadFileError(f"{path}: a plot is one of {', '.join(_PLOT_SUFFIXES)}")
    try:
        if load_plot is None:
            raise ModuleNotFoundError("the light client draws no plots")
        return load_plot()
    except ModuleNotFoundError as error:
        raise BadFileError(f"--plot: {error}; install it with: pip install 'carv[demo]'") from error


def profile_record(profile: TeacherProfile) -> dict[str, Any]:
    """A profile as JSON has it: lists for arrays, null for what is not a number."""
    return {key: _plain(value) for key, value in asdict(profile).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return cast("Any", value).tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, tuple):
        return [
            {key: _plain(each) for key, each in part.items()}
            for part in cast("tuple[dict[str, Any], ...]", value)
        ]
    return value


def _print(profile: TeacherProfile) -> None:
    """The bins, then what the proposals make of the variance."""
    norms = [math.sqrt(each.second_moment) for each in profile.bins]
    most = max(norms) or 1.0
    header = ["t", "log-SNR", "prior", "rms |f|", "", "+-", "|E f|^2", "even", "slope"]
    rows = [
        _row(each, norm, bar(norm / most, _BAR_WIDTH, sys.stdout))
        for each, norm in zip(profile.bins, norms, strict=True)
    ]
    print_table([header, *rows])
    print("|E f|^2 and even, which antithetic coupling leaves, are shares of E |f|^2.\n")
    variances = {
        "prior": profile.prior_variance,
        "weight": profile.weight_variance,
        "oracle": profile.oracle_variance,
    }
    gains = {
        name: f"{profile.prior_variance / value:.2f}" if value > 0 else "-"
        for name, value in variances.items()
    }
    lines = [[name, f"{value:.4g}", gains[name]] for name, value in variances.items()]
    print_table([["proposal", "variance of one draw", "gain"], *lines])
    print(f"|g|^2 {profile.squared_gradient:.4g}")
    if profile.adaptive is not None:
        print(f"the history's adaptive proposal rests on {profile.past_draws:.0f} past draws")
    print(
        f"{profile.draws_spent} draws, {profile.evaluations_spent} evaluations of "
        f"{1e3 * profile.evaluation_seconds:.2f} ms, seed {profile.seed}"
    )


def _row(each: ProfileBin, norm: float, filled: str) -> list[str]:
    second = each.second_moment
    # d sqrt(m) = dm / (2 sqrt(m))
    error = each.second_moment_error / (2 * norm) if norm > 0 else 0.0

    def share(value: float) -> str:
        return f"{value / second:.0%}" if second > 0 and math.isfinite(value) else "-"

    return [
        f"{each.first_timestep}..{each.last_timestep}",
        f"{each.log_snr:+.2f}",
        f"{each.prior_mass:.1%}",
        f"{norm:.4g}",
        filled,
        f"{error:.2g}" if math.isfinite(error) else "-",
        share(each.squared_mean),
        share(each.even_second_moment),
        f"{each.noise_slope:+.3f}",
    ]
