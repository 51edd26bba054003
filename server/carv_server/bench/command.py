"""``carv bench``: the arguments, and what can go wrong before anything is measured."""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
from pathlib import Path

__all__ = ["register"]

_DEFAULT_OUTPUT = Path("out/bench/variance")
_QUICK_SECONDS = 120.0
_LEAST_MINUTES = 5.0
_FULL_MINUTES = 35.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Adds ``carv bench``."""
    parser = subparsers.add_parser(
        "bench", help="benchmarks that make the documents' tables and figures again"
    )
    benches = parser.add_subparsers(required=True, metavar="BENCH", title="benchmarks")
    variance = benches.add_parser(
        "variance",
        help="variance of the estimators on the embedded teacher",
        description="Measures the variance of the server's estimators, the paper's and iid "
        "uniform draws on the embedded teacher, and writes tables (CSV, Markdown), figures (PNG) "
        "and summary.md.",
        epilog="Exit codes: 0 done, 2 an argument that cannot be used, 130 interrupted: what was "
        "finished by then is written.",
    )
    add = variance.add_argument
    add(
        "--output",
        type=Path,
        default=_DEFAULT_OUTPUT,
        help=f"folder to write to (default: {_DEFAULT_OUTPUT})",
    )
    size = variance.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="about two minutes: everything, with wide errors"
    )
    size.add_argument(
        "--minutes",
        type=_minutes,
        help=f"about how long to measure on two cores, {_LEAST_MINUTES:g} or more "
        f"(default: {_FULL_MINUTES:g})",
    )
    add(
        "--docs",
        type=Path,
        help="also write variance.md and its figures to this folder",
    )
    add("--threads", type=_positive, default=2, help="CPU threads of the teacher (default: 2)")
    variance.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    for folder in (arguments.output, arguments.docs):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return _fail(f"cannot write to {folder}: {error.strerror}", 2)
    try:
        # Seconds of imports: not before the arguments are known good.
        from carv_server.bench.run import Bench, run_variance
        from carv_server.bench.settings import full_scale, quick_scale
    except ModuleNotFoundError as error:
        return _fail(f"{error}; install the benchmark with: pip install 'carv[demo]'", 2)
    minutes = arguments.minutes or _FULL_MINUTES
    session = run_variance(
        Bench(
            scale=quick_scale() if arguments.quick else full_scale(minutes),
            output=arguments.output,
            seconds=_QUICK_SECONDS if arguments.quick else 60.0 * minutes,
            threads=arguments.threads,
            documents=arguments.docs,
            command=shlex.join(["carv", *sys.argv[1:]]),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
    )
    for target in session.targets:
        print(f"{'met    ' if target.met else 'NOT MET'} {target.claim}: {target.measured}")
    print(f"wrote {arguments.output / 'summary.md'}")
    return 0


def _fail(message: str, code: int) -> int:
    print(f"carv bench variance: {message}", file=sys.stderr)
    return code


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _LEAST_MINUTES <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of minutes, {_LEAST_MINUTES:g} or more"
        )
    return value
