"""What the commands of all benchmarks have in common: values of arguments, folders, failures."""

from __future__ import annotations

import argparse
import datetime
import functools
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from carv_server.ending import on_sigterm

__all__ = [
    "above_zero",
    "command_line",
    "fail",
    "interrupt_once",
    "interruptible",
    "make_folders",
    "minutes",
    "positive",
    "today",
]

Run = Callable[[argparse.Namespace], int]


def positive(text: str) -> int:
    """A whole number above 0."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def minutes(least: float) -> Callable[[str], float]:
    """A finite number of minutes, ``least`` or more."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number of minutes, {least:g} or more"
            )
        return value

    return parse


def make_folders(folders: Iterable[Path | None]) -> str | None:
    """Makes them; why one cannot be written to, or None."""
    for folder in folders:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"cannot write to {folder}: {error.strerror}"
    return None


def interruptible(run: Run) -> Run:
    """The first SIGTERM is Ctrl-C to it: what was finished by then is written."""

    @functools.wraps(run)
    def wrapped(arguments: argparse.Namespace) -> int:
        with on_sigterm(interrupt_once):
            return run(arguments)

    return wrapped


def interrupt_once(number: int, frame: FrameType | None) -> None:
    """A handler: KeyboardInterrupt, and no other until what it unwinds has been written; whoever
    ends a whole group of processes may tell each of them twice."""
    # Not SIG_IGN, which a process that is started while unwinding would keep.
    signal.signal(number, lambda number, frame: None)
    raise KeyboardInterrupt


def fail(message: str, code: int, bench: str) -> int:
    """Says it on stderr; the exit code."""
    print(f"carv bench {bench}: {message}", file=sys.stderr)
    return code


def command_line() -> str:
    """This process's own, as it would be typed."""
    return shlex.join(["carv", *sys.argv[1:]])


def today() -> str:
    """ISO date, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
