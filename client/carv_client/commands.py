"""The subcommands of ``carv`` that need the light client alone: ``teachers``, ``estimate``.

Handlers take the parsed arguments and return an exit code. Results go to standard output,
everything else to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from carv_client._config import DEFAULT_ADDRESS, ClientConfig
from carv_client._errors import CarvError, DeadlineExceededError, UnavailableError
from carv_client._sync import TeacherClient
from carv_client._types import (
    Coupling,
    Estimate,
    Guidance,
    NamedWeighting,
    Proposal,
    Sampler,
    Teacher,
)

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

__all__ = ["EXIT_CODES", "OK", "REFUSED", "UNAVAILABLE", "USAGE", "main", "register"]

OK, USAGE, UNAVAILABLE, REFUSED = 0, 2, 3, 4

EXIT_CODES = """\
exit codes:
  0  done
  2  wrong usage, or a file that cannot be read or written
  3  no server answers at the address, or not in time
  4  the server refused the request, or failed at it; the reason is on standard error
"""


def register(subparsers: Subparsers) -> None:
    """Add the subcommands; each sets ``run``, a function from arguments to an exit code."""
    _add_teachers(subparsers)
    _add_estimate(subparsers)


def _add_teachers(subparsers: Subparsers) -> None:
    parser = _parser(subparsers, "teachers", "List the teachers that a server hosts.")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.set_defaults(run=_teachers)


def _add_estimate(subparsers: Subparsers) -> None:
    parser = _parser(
        subparsers,
        "estimate",
        "Estimate the teacher's gradient at cached latents, write it as .npy, and print its "
        "diagnostics.",
    )
    add = parser.add_argument
    add("latents", type=Path, metavar="LATENTS.npy", help="float array, [renders, *event shape]")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to condition on")
    source.add_argument("--class-id", type=int, help="class to condition on")
    add("--negative-prompt", help="text in place of the unconditional branch")
    add("--teacher", help="teacher id; by default the server's first")
    add("--draws", type=int, default=8, help="draws per render (default: %(default)s)")
    add(
        "--guidance-scale",
        type=float,
        default=7.5,
        help="s of classifier-free guidance; without --prompt or --class-id there is none "
        "(default: %(default)s)",
    )
    add(
        "--guidance",
        choices=get_args(Guidance),
        default="standard",
        help="convention of the scale: u + s(c - u), or c + s(c - u) (default: %(default)s)",
    )
    add(
        "--weighting",
        choices=get_args(NamedWeighting),
        default="sds",
        help="w(t) of the objective (default: %(default)s)",
    )
    add(
        "--timestep-range",
        type=float,
        nargs=2,
        default=(0.02, 0.98),
        metavar=("MIN", "MAX"),
        help="range of t as fractions of the schedule (default: 0.02 0.98)",
    )
    server_choice = "by default the server's choice, which the diagnostics name"
    add("--sampler", choices=get_args(Sampler), help=f"timestep sampler; {server_choice}")
    add("--proposal", choices=get_args(Proposal), help=f"law that t is drawn from; {server_choice}")
    add("--coupling", choices=get_args(Coupling), help=f"noise coupling; {server_choice}")
    add("--seed", type=int, help="seed of the draws; by default the server picks one")
    add(
        "--output",
        type=Path,
        metavar="GRADIENT.npy",
        help="where to write the gradient, float32 (default: LATENTS.gradient.npy)",
    )
    add("--json", action="store_true", help="print the diagnostics as JSON")
    parser.set_defaults(run=_estimate)


def _parser(subparsers: Subparsers, name: str, description: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=description,
        description=description,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address", default=DEFAULT_ADDRESS, help="host:port of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=120.0,
        metavar="SECONDS",
        help="most time for each call, retries included (default: %(default)s)",
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _teachers(arguments: argparse.Namespace) -> int:
    try:
        with _client(arguments) as client, _waiting(arguments.address):
            teachers = client.list_teachers()
    except CarvError as error:
        return _report(error)
    rows = [_teacher_row(teacher) for teacher in teachers]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return OK
    header = list(rows[0]) if rows else []
    table = [header] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for line in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    return OK


def _teacher_row(teacher: Teacher) -> dict[str, Any]:
    accepts = ["prompts"] if teacher.accepts_prompts else []
    accepts += [f"{teacher.classes} classes"] if teacher.classes else []
    accepts += ["unconditional"] if teacher.has_unconditional else []
    cost = teacher.evaluation_seconds
    return {
        "teacher": teacher.id,
        "family": teacher.family,
        "event_shape": "x".join(map(str, teacher.event_shape)),
        "prediction": teacher.prediction_type,
        "accepts": ", ".join(accepts),
        "device": teacher.device,
        "ms_per_evaluation": f"{cost * 1e3:.2f}" if cost else "not yet measured",
        "digest": teacher.digest[:12],
    }


def _estimate(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output or arguments.latents.with_suffix(".gradient.npy")
    try:
        latents = np.load(arguments.latents, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return _complain(f"{arguments.latents} cannot be read: {error}")
    if not isinstance(latents, np.ndarray):
        return _complain(f"{arguments.latents} is an archive; give a single array (.npy)")
    if not output.parent.is_dir():
        return _complain(f"{output.parent} is not a folder")
    try:
        with _client(arguments) as client, _waiting(arguments.address):
            estimate = _ask(client, arguments, latents)
    except CarvError as error:
        return _report(error)
    try:
        with output.open("wb") as file:
            np.save(file, estimate.gradient)
    except OSError as error:
        return _complain(f"{output} cannot be written: {error}")
    diagnostics = _diagnostics(estimate) | {"output": str(output)}
    if arguments.json:
        print(json.dumps(diagnostics, indent=2))
    else:
        width = max(map(len, diagnostics))
        for name, value in diagnostics.items():
            print(f"{name.ljust(width)}  {_text(value)}")
    return OK


def _ask(client: TeacherClient, arguments: argparse.Namespace, latents: Any) -> Estimate:
    conditioning = None
    if arguments.prompt is not None or arguments.class_id is not None:
        conditioning = client.create_conditioning(
            arguments.prompt, class_id=arguments.class_id, teacher=arguments.teacher
        )
    low, high = arguments.timestep_range
    return client.estimate_gradient(
        latents,
        conditioning,
        draws=arguments.draws,
        guidance_scale=arguments.guidance_scale,
        guidance=arguments.guidance,
        negative_prompt=arguments.negative_prompt,
        seed=arguments.seed,
        teacher=arguments.teacher,
        timestep_range=(low, high),
        weighting=arguments.weighting,
        sampler=arguments.sampler,
        proposal=arguments.proposal,
        coupling=arguments.coupling,
    )


def _diagnostics(estimate: Estimate) -> dict[str, Any]:
    """What the estimate says of itself; lists hold one value for each render."""
    flat = estimate.gradient.reshape(len(estimate.gradient), -1)
    variance = estimate.noise_variance
    return {
        "gradient_norm": np.linalg.norm(flat, axis=1).tolist(),
        "standard_error": None if variance is None else np.sqrt(variance).tolist(),
        "variance_estimator": estimate.variance_estimator,
        "effective_sample_size": estimate.effective_sample_size.tolist(),
        "seed": estimate.seed,
        "sampler": estimate.sampler,
        "proposal": estimate.proposal,
        "coupling": estimate.coupling,
        "draws": estimate.draws_spent,
        "evaluations": estimate.evaluations_spent,
        "queue_seconds": estimate.queue_seconds,
        "compute_seconds": estimate.compute_seconds,
        "total_seconds": estimate.total_seconds,
        "teacher_digest": estimate.teacher_digest,
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, cast("list[Any]", value)))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _client(arguments: argparse.Namespace) -> TeacherClient:
    config = ClientConfig(address=arguments.address)
    return TeacherClient(replace(config, timeout_seconds=arguments.timeout))


@contextmanager
def _waiting(address: str) -> Generator[None]:
    """Say on a terminal whom we wait for, and how long by now."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def show() -> None:
        seconds = 0
        while not done.wait(1.0):
            seconds += 1
            print(f"\rwaiting for {address} … {seconds} s", end="", file=sys.stderr, flush=True)
        if seconds:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _report(error: CarvError) -> int:
    unanswered = isinstance(error, UnavailableError | DeadlineExceededError)
    return _complain(str(error), UNAVAILABLE if unanswered else REFUSED)


def _complain(message: str, code: int = USAGE) -> int:
    print(f"carv: {message}", file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """The light subcommands alone, where the server part is not installed."""
    parser = argparse.ArgumentParser(prog="python -m carv_client.commands", epilog=EXIT_CODES)
    register(parser.add_subparsers(required=True, metavar="command"))
    parsed = parser.parse_args(arguments)
    return parsed.run(parsed)


if __name__ == "__main__":
    sys.exit(main())
