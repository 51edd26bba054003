"""The subcommands of ``carv`` that need the light client alone: ``teachers``, ``estimate``,
``profile``.

Handlers take the parsed arguments and return an exit code. Results go to standard output,
everything else to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from carv_client import _profile_command
from carv_client._errors import CarvError
from carv_client._profile_command import PlotLoader
from carv_client._terminal import (
    EXIT_CODES,
    OK,
    REFUSED,
    UNAVAILABLE,
    USAGE,
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
    text,
    waiting,
)
from carv_client._types import Coupling, Estimate, Proposal, Sampler, Teacher

__all__ = ["EXIT_CODES", "OK", "REFUSED", "UNAVAILABLE", "USAGE", "main", "register"]


def register(subparsers: Subparsers, load_plot: PlotLoader | None = None) -> None:
    """Add the subcommands; each sets ``run``, a function from arguments to an exit code.

    ``load_plot`` imports what draws ``carv profile --plot``; the light client has no such thing.
    """
    _add_teachers(subparsers)
    _add_estimate(subparsers)
    _profile_command.register(subparsers, load_plot)


def _add_teachers(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "teachers", "List the teachers that a server hosts.")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.set_defaults(run=_teachers)


def _add_estimate(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "estimate",
        "Estimate the teacher's gradient at cached latents, write it as .npy, and print its "
        "diagnostics.",
    )
    add = parser.add_argument
    add("latents", type=Path, metavar="LATENTS.npy", help="float array, [renders, *event shape]")
    add_objective(parser)
    add("--draws", type=int, default=8, help="draws per render (default: %(default)s)")
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


def _teachers(arguments: argparse.Namespace) -> int:
    try:
        with open_client(arguments) as client, waiting(arguments.address):
            teachers = client.list_teachers()
    except CarvError as error:
        return report(error)
    rows = [_teacher_row(teacher) for teacher in teachers]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return OK
    header = list(rows[0]) if rows else []
    print_table([header] + [[str(value) for value in row.values()] for row in rows])
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
    try:
        latents = read_latents(arguments.latents)
        # Only now: a path without a name, as "/", has no suffix to change.
        output: Path = arguments.output or arguments.latents.with_suffix(".gradient.npy")
        check_output(output)
    except BadFileError as error:
        return complain(str(error))
    try:
        with open_client(arguments) as client, waiting(arguments.address):
            estimate = client.estimate_gradient(
                latents,
                make_conditioning(client, arguments),
                draws=arguments.draws,
                seed=arguments.seed,
                sampler=arguments.sampler,
                proposal=arguments.proposal,
                coupling=arguments.coupling,
                **objective_keywords(arguments),
            )
    except CarvError as error:
        return report(error)
    try:
        with output.open("wb") as file:
            np.save(file, estimate.gradient)
    except OSError as error:
        return complain(f"{output} cannot be written: {error}")
    diagnostics = _diagnostics(estimate) | {"output": str(output)}
    if arguments.json:
        print(json.dumps(diagnostics, indent=2))
    else:
        width = max(map(len, diagnostics))
        for name, value in diagnostics.items():
            print(f"{name.ljust(width)}  {text(value)}")
    return OK


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The light subcommands alone, where the server part is not installed."""
    parser = argparse.ArgumentParser(prog="python -m carv_client.commands", epilog=EXIT_CODES)
    register(parser.add_subparsers(required=True, metavar="command"))
    parsed = parser.parse_args(arguments)
    return parsed.run(parsed)


if __name__ == "__main__":
    sys.exit(main())
