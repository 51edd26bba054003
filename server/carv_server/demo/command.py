"""``carv demo``: the arguments, and what can go wrong before anything is started."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from carv_server.demo.convention import PromptError, embedded_folder, read_convention
from carv_server.ending import on_sigterm

__all__ = ["register"]

_PROMPT = "a red torus"
_BUDGET_SECONDS = 20.0
_QUICK_BUDGET_SECONDS = 5.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Adds ``carv demo``."""
    parser = subparsers.add_parser(
        "demo",
        help="turn a prompt into a 3-D object, plain SDS and CARV side by side",
        description="Starts a server with the embedded teacher as a process of its own, and turns "
        "a prompt into a 3-D object twice through it: plain SDS and CARV, at the same measured "
        "compute. Writes turntables, plots and report.html.",
        epilog="Exit codes: 0 done, 1 the server failed, 2 a prompt or argument that cannot be "
        "used, 130 interrupted, 143 terminated.",
    )
    add = parser.add_argument
    add("--prompt", default=_PROMPT, help=f"what to make (default: {_PROMPT!r})")
    add(
        "--output",
        type=Path,
        default=Path("out/demo"),
        help="folder to write to (default: out/demo)",
    )
    add("--seeds", type=_positive, help="runs of each method (default: 3; with --quick 1)")
    add(
        "--budget-seconds",
        type=_seconds,
        help="compute of one run, upstream and denoise together "
        f"(default: {_BUDGET_SECONDS:g}; with --quick {_QUICK_BUDGET_SECONDS:g})",
    )
    add("--quick", action="store_true", help="a minute's look: one short run of each method")
    add(
        "--threads",
        type=_positive,
        default=1,
        help="CPU threads of renderer and server (default: 1)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    folder = embedded_folder()
    try:
        convention = read_convention(folder)
        prompt = convention.check_prompt(arguments.prompt)
    except FileNotFoundError as error:
        return _fail(f"the embedded teacher is missing: {error.filename}", 2)
    except PromptError as error:
        return _fail(str(error), 2)
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _fail(f"cannot write to {arguments.output}: {error.strerror}", 2)
    try:
        # Seconds of imports: not before the arguments are known good.
        from carv_client import CarvError
        from carv_server.demo.experiment import Plan
        from carv_server.demo.process import ServerFailed
        from carv_server.demo.run import Demo, run_demo
        from carv_server.demo.settings import Settings
    except ModuleNotFoundError as error:
        return _fail(f"{error}; install the demo with: pip install 'carv[demo]'", 2)
    quick = bool(arguments.quick)
    budget = arguments.budget_seconds or (_QUICK_BUDGET_SECONDS if quick else _BUDGET_SECONDS)
    settings = Settings(budget=budget, checkpoints=4 if quick else 7)
    plan = Plan(
        seeds=arguments.seeds or (1 if quick else 3),
        settings=settings,
        variance_cameras=3 if quick else 12,
        variance_draws=(1, 4) if quick else (1, 2, 4, 8),
    )
    demo = Demo(
        prompt=prompt,
        convention=convention,
        folder=folder,
        output=arguments.output,
        plan=plan,
        threads=arguments.threads,
        command=shlex.join(["carv", *sys.argv[1:]]),
    )
    try:
        with on_sigterm(_terminated):  # unwinds, so that the server is stopped
            metrics = run_demo(demo)
    except ServerFailed as error:
        return _fail(str(error), 1)
    except CarvError as error:
        return _fail(f"the server failed: {error}; its log: {demo.output / 'server.log'}", 1)
    for method in metrics["methods"].values():
        final = method["final"]
        print(
            f"{method['label']:>20}: {final['iterations']:.0f} iterations in "
            f"{final['compute_seconds']:.1f} s of compute, score {final['probability']:.3f}"
        )
    print(f"wrote {demo.output / 'report.html'} in {metrics['wall_seconds']:.0f} s")
    return 0


def _fail(message: str, code: int) -> int:
    print(f"carv demo: {message}", file=sys.stderr)
    return code


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
