"""What the light subcommands share: arguments, exit codes, and how they talk to people."""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast, get_args

import numpy as np
import numpy.typing as npt

from carv_client._config import DEFAULT_ADDRESS
from carv_client._credentials import add_credentials, config_of
from carv_client._errors import (
    CarvError,
    DeadlineExceededError,
    UnavailableError,
    UnsentRequestError,
)
from carv_client._sync import TeacherClient
from carv_client._types import Conditioning, Guidance, NamedWeighting

__all__ = [
    "EXIT_CODES",
    "OK",
    "REFUSED",
    "UNAVAILABLE",
    "USAGE",
    "BadFileError",
    "ObjectiveKeywords",
    "Subparsers",
    "add_command",
    "add_objective",
    "check_output",
    "complain",
    "make_conditioning",
    "objective_keywords",
    "open_client",
    "print_table",
    "read_latents",
    "report",
    "text",
    "waiting",
]

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # pyright: ignore[reportPrivateUsage]

OK, USAGE, UNAVAILABLE, REFUSED = 0, 2, 3, 4

EXIT_CODES = """\
exit codes:
  0  done
  2  wrong usage, a request that cannot be sent, or a file that cannot be read or written
  3  no server answers at the address, or not in time
  4  the server refused the request, or failed at it; the reason is on standard error
"""


class BadFileError(Exception):
    """A file that cannot be used; the message names it."""


class ObjectiveKeywords(TypedDict):
    """The keyword arguments that ``add_objective`` fills."""

    guidance_scale: float
    guidance: Guidance
    negative_prompt: str | None
    teacher: str | None
    timestep_range: tuple[float, float]
    weighting: NamedWeighting


def add_command(
    subparsers: Subparsers, name: str, description: str, *, timeout: float = 120.0
) -> argparse.ArgumentParser:
    """A subcommand that talks to one server."""
    parser = subparsers.add_parser(
        name,
        help=description,
        description=description,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address",
        type=_address,
        default=DEFAULT_ADDRESS,
        help="host:port of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout,
        metavar="SECONDS",
        help="most time for each call, retries included (default: %(default)s)",
    )
    add_credentials(parser)
    return parser


def _address(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("it is empty; give host:port")
    return value


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds above 0")
    return seconds


def add_objective(parser: argparse.ArgumentParser) -> None:
    """What the gradient is of: conditioning, guidance, weighting and range of t."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to condition on")
    source.add_argument("--class-id", type=int, help="class to condition on")
    add("--negative-prompt", help="text in place of the unconditional branch")
    add("--teacher", help="teacher id; by default the server's first")
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


def objective_keywords(arguments: argparse.Namespace) -> ObjectiveKeywords:
    """What ``add_objective`` added, as keywords of the client's methods."""
    low, high = arguments.timestep_range
    return {
        "guidance_scale": arguments.guidance_scale,
        "guidance": arguments.guidance,
        "negative_prompt": arguments.negative_prompt,
        "teacher": arguments.teacher,
        "timestep_range": (low, high),
        "weighting": arguments.weighting,
    }


def make_conditioning(client: TeacherClient, arguments: argparse.Namespace) -> Conditioning | None:
    """That of ``--prompt`` or ``--class-id``; None without."""
    if arguments.prompt is None and arguments.class_id is None:
        return None
    return client.create_conditioning(
        arguments.prompt, class_id=arguments.class_id, teacher=arguments.teacher
    )


def read_latents(path: Path) -> npt.NDArray[Any]:
    """One array from a ``.npy`` file.

    Raises:
        BadFileError: it cannot be read, or holds several.
    """
    try:
        latents: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(latents, np.ndarray):
        raise BadFileError(f"{path} is an archive; give a single array (.npy)")
    return cast("npt.NDArray[Any]", latents)


def check_output(path: Path) -> None:
    """Find out before the work is done.

    Raises:
        BadFileError: nothing can be written there.
    """
    if not path.parent.is_dir():
        raise BadFileError(f"{path.parent} is not a folder")
    if path.is_dir():
        raise BadFileError(f"{path} cannot be written: it is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadFileError(f"{path} cannot be written: permission denied")


def open_client(arguments: argparse.Namespace) -> TeacherClient:
    """A client of ``--address`` with ``--timeout`` and the credentials given.

    Raises:
        UnsentRequestError: the credentials cannot be read or used.
    """
    return TeacherClient(config_of(arguments))


@contextmanager
def waiting(address: str) -> Generator[None]:
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


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Lines of cells, the first of them the header, in columns."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def text(value: Any) -> str:
    """A value for people: floats to four digits, lists with spaces."""
    if isinstance(value, list):
        return " ".join(map(text, cast("list[Any]", value)))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(error: CarvError) -> int:
    """Tell a failed call; its exit code."""
    if isinstance(error, UnsentRequestError):
        return complain(str(error))
    unanswered = isinstance(error, UnavailableError | DeadlineExceededError)
    return complain(str(error), UNAVAILABLE if unanswered else REFUSED)


def complain(message: str, code: int = USAGE) -> int:
    """Tell what is wrong; the exit code."""
    print(f"carv: {message}", file=sys.stderr)
    return code
