"""docker-compose.yml: its schema, and the hardening that every service has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.validate.tools import complaints

__all__ = ["check", "check_override"]

_NO_LONG_RUN = {"client"}  # runs to its end: nothing to probe


def check(path: Path) -> Iterator[str]:
    """Raises MissingTool."""
    yield from _schema(path)
    for name, service in _services(path).items():
        for line in _service(name, service, path.parent):
            yield f"{name}: {line}"


def check_override(path: Path, over: Path, made: Collection[str]) -> Iterator[str]:
    """A second file over the first: its own schema, and the hardening of the two together.

    Args:
        made: folders that whoever uses it makes first.

    Raises:
        MissingTool: no schema can be checked.
    """
    yield from _schema(over)
    services = _services(path)
    for name, changes in _services(over).items():
        if name not in services:
            yield f"{name}: is no service of {path.name}"
            continue
        for line in _service(name, _merged(services[name], changes), path.parent, made):
            yield f"{name}: {line}"


def _schema(path: Path) -> Iterator[str]:
    yield from complaints("check-jsonschema", ["--builtin-schema", "vendor.compose-spec", path])


def _services(path: Path) -> Mapping[str, Any]:
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content.get("services", {})


def _merged(service: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """As compose does for what is used here: tables by key, mounts and ports one more."""
    found = dict(service)
    for key, value in changes.items():
        present = found.get(key)
        if key in ("volumes", "ports") and present is not None:
            found[key] = [*present, *value]
        elif isinstance(value, dict) and isinstance(present, dict):
            found[key] = {**present, **value}
        else:
            found[key] = value
    return found


def _service(
    name: str, service: Mapping[str, Any], root: Path, made: Collection[str] = ()
) -> Iterator[str]:
    if service.get("read_only") is not True:
        yield "read_only must be true"
    if service.get("cap_drop") != ["ALL"]:
        yield "cap_drop must be [ALL]"
    if service.get("cap_add") or service.get("privileged"):
        yield "no capability may be given back"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "security_opt must have no-new-privileges:true"
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"port {port} is published beyond loopback"
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if not {"cpus", "memory", "pids"} <= set(limits):
        yield "deploy.resources.limits must bound cpus, memory and pids"
    image = str(service.get("image", ""))
    if ":" not in image or image.endswith(":latest"):
        yield f"image {image!r} needs an exact tag"
    build = service.get("build")
    if build and not (root / build["dockerfile"]).is_file():
        yield f"{build['dockerfile']} is not there"
    if not build and name not in _NO_LONG_RUN and not service.get("healthcheck"):
        yield "needs a healthcheck"  # images built here have their own
    for volume in service.get("volumes", []):
        source, _, rest = str(volume).partition(":")
        if source.startswith("."):
            if source not in made and not (root / source).exists():
                yield f"{source} is not there"
            if not rest.endswith(":ro"):
                yield f"{source} must be mounted read-only (:ro)"
