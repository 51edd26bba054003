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
_PROMPTS = ("a red torus", "a blue cube", "a green cone")
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
        epilog="Exit codes: 0 done, 1 the server failed, 2 an argument that cannot be used, 130 "
        "interrupted: what was "
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
    _register_convergence(benches)


def _register_convergence(
    benches: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
) -> None:
    parser = benches.add_parser(
        "convergence",
        help="plain SDS and CARV at equal compute, over prompts and seeds",
        description="Optimises fields with plain SDS and with CARV at the same measured compute, "
        "over prompts and seeds, and writes score against compute with error bands. The costs of "
        "a render and of a draw are measured first.",
        epilog="Exit codes: 0 done, 1 the server failed, 2 an argument that cannot be used, 130 "
        "interrupted: the runs done by then are in convergence.csv.",
    )
    add = parser.add_argument
    add("--prompt", action="append", dest="prompts", help="repeatable (default: three of them)")
    add("--seeds", type=_positive, default=5, help="runs of each method and prompt (default: 5)")
    add(
        "--iterations",
        type=_positive,
        default=220,
        help="iterations of a plain run; CARV gets as many as cost the same (default: 220)",
    )
    add("--draws", type=_positive, default=4, help="CARV's K (default: 4)")
    add(
        "--learning-rate",
        type=_above_zero,
        default=0.05,
        help="of Adam at the start; it falls to a tenth (default: 0.05)",
    )
    add("--guidance-scale", type=_above_zero, default=7.5, help="of both methods (default: 7.5)")
    add("--threads", type=_positive, default=1, help="CPU threads of renderer and server")
    add("--output", type=Path, default=Path("out/bench/convergence"), help="folder to write to")
    add("--docs", type=Path, help="also write convergence.md and its figure to this folder")
    parser.set_defaults(run=_run_convergence)


def _run_convergence(arguments: argparse.Namespace) -> int:
    from carv_server.demo.convention import PromptError, embedded_folder, read_convention

    try:
        convention = read_convention(embedded_folder())
        prompts = [convention.check_prompt(p) for p in arguments.prompts or _PROMPTS]
        for folder in (arguments.output, arguments.docs):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
    except PromptError as error:
        return _fail(str(error), 2, "convergence")
    except OSError as error:
        return _fail(f"cannot write: {error}", 2, "convergence")
    try:
        from carv_client import CarvError
        from carv_server.bench.convergence import Convergence, run_convergence
        from carv_server.bench.run import machine_line
        from carv_server.bench.tables import Origin
        from carv_server.demo.process import ServerFailed
    except ModuleNotFoundError as error:
        return _fail(
            f"{error}; install the benchmark with: pip install 'carv[demo]'", 2, "convergence"
        )
    plan = Convergence(
        prompts=prompts,
        seeds=arguments.seeds,
        iterations=arguments.iterations,
        draws=arguments.draws,
        learning_rate=arguments.learning_rate,
        guidance_scale=arguments.guidance_scale,
        threads=arguments.threads,
        output=arguments.output,
        documents=arguments.docs,
        origin=Origin(
            shlex.join(["carv", *sys.argv[1:]]),
            machine_line(),
            datetime.datetime.now(datetime.UTC).date().isoformat(),
        ),
    )
    try:
        result = run_convergence(plan)
    except (ServerFailed, CarvError) as error:
        return _fail(f"the server failed: {error}", 1, "convergence")
    for score, groups in result["savings"].items():
        low, high = groups["all"]["interval"]
        print(
            f"{score}: CARV reaches the baseline's last at {groups['all']['share']:.2f} "
            f"({low:.2f} to {high:.2f}) of its compute"
        )
    print(f"wrote {arguments.output / 'convergence.md'}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    for folder in (arguments.output, arguments.docs):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return _fail(f"cannot write to {folder}: {error.strerror}", 2)
    try:
        # Seconds of imports: not before the arguments are known good.
        from carv_client import CarvError
        from carv_server.bench.run import Bench, run_variance
        from carv_server.bench.settings import full_scale, quick_scale
        from carv_server.demo.process import ServerFailed
    except ModuleNotFoundError as error:
        return _fail(f"{error}; install the benchmark with: pip install 'carv[demo]'", 2)
    minutes = arguments.minutes or _FULL_MINUTES
    try:
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
    except (ServerFailed, CarvError) as error:
        return _fail(f"the server failed: {error}; what was finished is written", 1)
    for target in session.targets:
        print(f"{'met    ' if target.met else 'NOT MET'} {target.claim}: {target.measured}")
    print(f"wrote {arguments.output / 'summary.md'}")
    return 0


def _fail(message: str, code: int, bench: str = "variance") -> int:
    print(f"carv bench {bench}: {message}", file=sys.stderr)
    return code


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


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
