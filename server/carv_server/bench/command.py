"""``carv bench``: the arguments, and what can go wrong before anything is measured."""

from __future__ import annotations

import argparse
from pathlib import Path

from carv_server.bench.arguments import (
    above_zero,
    command_line,
    fail,
    interruptible,
    make_folders,
    minutes,
    positive,
    today,
)
from carv_server.bench.peers import command as peers_command
from carv_server.bench.sections import SECTION_NAMES
from carv_server.bench.service import command as service_command

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
        type=minutes(_LEAST_MINUTES),
        help=f"about how long to measure on two cores, {_LEAST_MINUTES:g} or more "
        f"(default: {_FULL_MINUTES:g})",
    )
    add(
        "--docs",
        type=Path,
        help="also write variance.md and its figures to this folder",
    )
    add(
        "--only",
        action="append",
        choices=SECTION_NAMES,
        default=[],
        help="measure this section and what it needs alone; repeatable, not with --docs",
    )
    add("--threads", type=positive, default=2, help="CPU threads of the teacher (default: 2)")
    variance.set_defaults(run=interruptible(_run))
    _register_convergence(benches)
    service_command.register(benches)
    peers_command.register(benches)


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
    add("--seeds", type=positive, default=5, help="runs of each method and prompt (default: 5)")
    add(
        "--iterations",
        type=positive,
        default=220,
        help="iterations of a plain run; CARV gets as many as cost the same (default: 220)",
    )
    add("--draws", type=positive, default=4, help="CARV's K (default: 4)")
    add(
        "--learning-rate",
        type=above_zero,
        default=0.05,
        help="of Adam at the start; it falls to a tenth (default: 0.05)",
    )
    add("--guidance-scale", type=above_zero, default=7.5, help="of both methods (default: 7.5)")
    add("--threads", type=positive, default=1, help="CPU threads of renderer and server")
    add("--output", type=Path, default=Path("out/bench/convergence"), help="folder to write to")
    add("--docs", type=Path, help="also write convergence.md and its figure to this folder")
    parser.set_defaults(run=interruptible(_run_convergence))


def _run_convergence(arguments: argparse.Namespace) -> int:
    from carv_server.demo.convention import PromptError, embedded_folder, read_convention

    try:
        convention = read_convention(embedded_folder())
        prompts = [convention.check_prompt(p) for p in arguments.prompts or _PROMPTS]
    except PromptError as error:
        return fail(str(error), 2, "convergence")
    refused = make_folders((arguments.output, arguments.docs))
    if refused is not None:
        return fail(refused, 2, "convergence")
    try:
        from carv_client import CarvError
        from carv_server.bench.convergence import Convergence, run_convergence
        from carv_server.bench.run import machine_line
        from carv_server.bench.tables import Origin
        from carv_server.demo.process import ServerFailed
    except ModuleNotFoundError as error:
        return fail(
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
        origin=Origin(command_line(), machine_line(), today()),
    )
    try:
        result = run_convergence(plan)
    except (ServerFailed, CarvError) as error:
        return fail(f"the server failed: {error}", 1, "convergence")
    for score, groups in result["savings"].items():
        low, high = groups["all"]["interval"]
        print(
            f"{score}: CARV reaches the baseline's last at {groups['all']['share']:.2f} "
            f"({low:.2f} to {high:.2f}) of its compute"
        )
    print(f"wrote {arguments.output / 'convergence.md'}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if arguments.only and arguments.docs:
        return fail("--docs takes a run of all sections, not --only", 2, "variance")
    refused = make_folders((arguments.output, arguments.docs))
    if refused is not None:
        return fail(refused, 2, "variance")
    try:
        # Seconds of imports: not before the arguments are known good.
        from carv_client import CarvError
        from carv_server.bench.run import Bench, run_variance
        from carv_server.bench.settings import full_scale, quick_scale
        from carv_server.demo.process import ServerFailed
    except ModuleNotFoundError as error:
        return fail(f"{error}; install the benchmark with: pip install 'carv[demo]'", 2, "variance")
    length = arguments.minutes or _FULL_MINUTES
    try:
        session = run_variance(
            Bench(
                scale=quick_scale() if arguments.quick else full_scale(length),
                output=arguments.output,
                seconds=_QUICK_SECONDS if arguments.quick else 60.0 * length,
                threads=arguments.threads,
                documents=arguments.docs,
                command=command_line(),
                date=today(),
                only=arguments.only,
            )
        )
    except (ServerFailed, CarvError) as error:
        return fail(f"the server failed: {error}; what was finished is written", 1, "variance")
    for target in session.targets:
        print(f"{'met    ' if target.met else 'NOT MET'} {target.claim}: {target.measured}")
    print(f"wrote {arguments.output / 'summary.md'}")
    return 0
