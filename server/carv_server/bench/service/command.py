"""``carv bench serving``: the arguments, and what can go wrong before anything is measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from carv_server.bench.arguments import (
    command_line,
    fail,
    interruptible,
    make_folders,
    minutes,
    today,
)

__all__ = ["register"]

_OUTPUT = Path("out/bench/serving")
_LEAST_MINUTES = 5.0
_FULL_MINUTES = 15.0


def register(
    benches: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
) -> None:
    """Adds ``carv bench serving``."""
    parser = benches.add_parser(
        "serving",
        help="what the service costs, and how well it uses a device",
        description="Serves a teacher that costs nothing, a simulated device and the embedded "
        "teacher from a process of its own, drives them over loopback from others in closed and "
        "open loops, and writes tables (CSV, Markdown), figures (PNG) and summary.md. Linux.",
        epilog="Exit codes: 0 done, 1 a process failed, 2 an argument that cannot be used, 130 "
        "interrupted: what was finished by then is written.",
    )
    add = parser.add_argument
    add("--output", type=Path, default=_OUTPUT, help=f"folder to write to (default: {_OUTPUT})")
    add("--docs", type=Path, help="also write serving_benchmark.md, figures and data there")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="about three minutes: everything, with wide errors"
    )
    size.add_argument(
        "--minutes",
        type=minutes(_LEAST_MINUTES),
        help=f"about how long to measure, {_LEAST_MINUTES:g} or more (default: {_FULL_MINUTES:g})",
    )
    parser.set_defaults(run=interruptible(_run))


def _run(arguments: argparse.Namespace) -> int:
    if not sys.platform.startswith("linux"):
        return fail("it meters processes by /proc, and needs Linux", 2, "serving")
    refused = make_folders((arguments.output, arguments.docs))
    if refused is not None:
        return fail(refused, 2, "serving")
    try:
        from carv_server.bench.load.bare import BareFailed
        from carv_server.bench.load.measure import DriverFailed
        from carv_server.bench.load.wire import CallFailed
        from carv_server.bench.run import machine_line
        from carv_server.bench.service.run import ServingBench, run_serving, scale_for
        from carv_server.bench.tables import Origin
        from carv_server.demo.process import ServerFailed
    except ModuleNotFoundError as error:
        return fail(f"{error}; install the benchmark with: pip install 'carv[demo]'", 2, "serving")
    length = None if arguments.quick else arguments.minutes or _FULL_MINUTES
    origin = Origin(command_line(), machine_line(), today())
    try:
        book = run_serving(
            ServingBench(scale_for(length), arguments.output, arguments.docs, origin)
        )
    except (ServerFailed, DriverFailed, BareFailed, CallFailed) as error:
        return fail(f"{error}; what was finished is written", 1, "serving")
    for target in book.targets:
        print(f"{'met    ' if target.met else 'NOT MET'} {target.claim}: {target.measured}")
    print(f"wrote {arguments.output / 'summary.md'}")
    return 0
