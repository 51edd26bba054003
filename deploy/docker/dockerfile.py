"""The part of a Dockerfile's language that this repository's own use, read without an engine.

What it does not know it refuses: a rehearsal that leaves a step out proves nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

__all__ = ["DockerfileError", "Healthcheck", "Ignore", "Instruction", "Stage", "expand", "parse"]

_KNOWN = frozenset(
    {"FROM", "ARG", "ENV", "WORKDIR", "RUN", "COPY", "USER", "LABEL", "EXPOSE", "STOPSIGNAL"}
    | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
)
_UNITS = {"s": 1.0, "m": 60.0}


class DockerfileError(ValueError):
    """The file and line, and what is wrong there."""


@dataclass(frozen=True)
class Instruction:
    """One step; ``text`` is what follows its name, continuation lines joined."""

    name: str
    text: str
    line: int

    def words(self) -> list[str]:
        """The arguments: of the JSON form, else split as a shell would."""
        if self.text.startswith("["):
            try:
                return list(map(str, json.loads(self.text)))
            except json.JSONDecodeError as error:
                raise DockerfileError(f"line {self.line}: {self.name}: {error}") from error
        return shlex.split(self.text)


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next.

    Attributes:
        base: an image, or the name of an earlier stage.
        name: of ``AS``, or its number as text.
    """

    base: str
    name: str
    instructions: Sequence[Instruction]

    def last(self, name: str) -> Instruction | None:
        """The one in force, where a later one replaces an earlier one."""
        return next((i for i in reversed(self.instructions) if i.name == name), None)


@dataclass(frozen=True)
class Healthcheck:
    """``command`` in exec form; times in seconds."""

    command: Sequence[str]
    interval: float
    timeout: float
    start_period: float
    retries: int

    @staticmethod
    def of(instruction: Instruction) -> Healthcheck | None:
        """None where it says NONE. Docker's defaults for what is not stated."""
        if instruction.text == "NONE":
            return None
        flags, _, command = instruction.text.partition("CMD")
        given = dict(re.findall(r"--([a-z-]+)=(\S+)", flags))
        words = Instruction("HEALTHCHECK CMD", command.strip(), instruction.line)
        if not words.text.startswith("["):
            raise DockerfileError(f"line {instruction.line}: HEALTHCHECK: use the exec form")
        return Healthcheck(
            words.words(),
            _seconds(given.pop("interval", "30s")),
            _seconds(given.pop("timeout", "30s")),
            _seconds(given.pop("start-period", "0s")),
            int(given.pop("retries", "3")),
        )


def _seconds(text: str) -> float:
    return float(text[:-1]) * _UNITS[text[-1]]


def parse(text: str) -> list[Stage]:
    """The stages in order.

    Raises:
        DockerfileError: an instruction that is not known here, or none belongs to a stage.
    """
    stages: list[Stage] = []
    current: list[Instruction] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            match = re.fullmatch(r"(\S+)(?:\s+AS\s+(\S+))?", instruction.text)
            if match is None:
                raise DockerfileError(f"line {instruction.line}: FROM {instruction.text}")
            current = []
            stages.append(Stage(match[1], match[2] or str(len(stages)), current))
        elif not stages:
            raise DockerfileError(f"line {instruction.line}: {instruction.name} before any FROM")
        else:
            current.append(instruction)
    if not stages:
        raise DockerfileError("no FROM")
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    parts: list[str] = []
    begun = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        if not parts:
            begun = number
        if line.rstrip().endswith("\\"):
            parts.append(line.rstrip()[:-1].strip())
            continue
        joined = " ".join([*parts, line.strip()])
        parts = []
        name, _, rest = joined.partition(" ")
        if name not in _KNOWN:
            raise DockerfileError(f"line {begun}: {name} is not known to this reader")
        yield Instruction(name, rest.strip(), begun)
    if parts:
        raise DockerfileError(f"line {begun}: ends in a continuation")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``$NAME`` and ``${NAME}`` replaced, a variable that is not set by nothing."""
    return re.sub(
        r"\$(?:(\w+)|\{(\w+)\})", lambda match: variables.get(match[1] or match[2], ""), text
    )


class Ignore:
    """A .dockerignore: the last pattern that matches a path or a folder above it decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self._rules = [
            (line.removeprefix("!").strip("/"), line.startswith("!"))
            for line in lines
            if line and not line.startswith("#")
        ]

    def sends(self, path: str) -> bool:
        """Whether the builder gets the file at this path, relative to the context."""
        sent = True
        pure = PurePosixPath(path)
        names = [str(pure), *map(str, list(pure.parents)[:-1])]
        for pattern, keep in self._rules:
            if any(_matches(name, pattern) for name in names):
                sent = keep
        return sent


def _matches(path: str, pattern: str) -> bool:
    """``*`` stays within a segment, a leading ``**/`` stands for any number of them."""
    parts = path.split("/")
    if pattern.startswith("**/"):
        rest = pattern[3:]
        return any(_matches("/".join(parts[start:]), rest) for start in range(len(parts)))
    wanted = pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch, parts, wanted))
