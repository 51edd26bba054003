"""Dockerfiles: hadolint, and what it does not ask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from deploy.docker.dockerfile import DockerfileError, Stage, parse
from deploy.validate.tools import complaints

__all__ = ["check"]

_PINNED = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")


def check(path: Path) -> Iterator[str]:
    """Several stages, exact bases, a numeric user, a health check, an exec-form entry point, and a
    .dockerignore that lets in only what it names. Raises MissingTool."""
    yield from complaints("hadolint", ["--no-color", path])
    try:
        stages = parse(path.read_text(encoding="utf-8"))
    except DockerfileError as error:
        yield str(error)
        return
    if len(stages) < 2:
        yield "has one stage: what builds it would be in the image"
    names = {stage.name for stage in stages}
    for stage in stages:
        if stage.base not in names and not _PINNED.fullmatch(stage.base):
            yield f"FROM {stage.base}: name an exact version"
    last = list(_inherited(stages))
    for name in ("HEALTHCHECK", "ENTRYPOINT", "USER"):
        if not any(stage.last(name) for stage in last):
            yield f"the image has no {name}"
    user = next((i.text for stage in last if (i := stage.last("USER"))), "")
    if not user.isdigit() or user == "0":
        yield f"USER {user}: give a number that is not root's, which Kubernetes can check"
    entry = next((i.text for stage in last if (i := stage.last("ENTRYPOINT"))), "")
    if not entry.startswith("["):
        yield "ENTRYPOINT: a shell would keep SIGTERM to itself; use the exec form"
    ignore = path.with_name(f"{path.name}.dockerignore")
    if not ignore.is_file() or not ignore.read_text(encoding="utf-8").startswith("*\n"):
        yield f"{ignore.name} must be there and begin with *"


def _inherited(stages: list[Stage]) -> Iterator[Stage]:
    """The last stage, its base, and so on."""
    by_name = {stage.name: stage for stage in stages}
    stage: Stage | None = stages[-1]
    while stage is not None:
        yield stage
        stage = by_name.get(stage.base)
