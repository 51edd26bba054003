"""The outside tools that checks use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["MissingTool", "complaints", "find", "run"]

_SECONDS = 120


class MissingTool(Exception):
    """Its text is the tool's name; the check is skipped, and that is said."""


def find(name: str) -> str:
    """Path of a program beside this Python or on the PATH.

    Raises:
        MissingTool: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.is_file() else shutil.which(name)
    if path is None:
        raise MissingTool(name)
    return path


def run(
    name: str, arguments: Sequence[str | Path], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to its end, with its output as text."""
    command = [find(name), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
    )


def complaints(
    name: str, arguments: Sequence[str | Path], folder: Path | None = None
) -> Iterator[str]:
    """What a tool says where it exits with an error; nothing where it does not."""
    result = run(name, arguments, folder)
    if result.returncode != 0:
        text = result.stdout + result.stderr
        yield from (line for line in text.splitlines() if line.strip())
