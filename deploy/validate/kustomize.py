"""Kubernetes: what ``kubectl kustomize`` makes, against schemas and the rules of pods.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from deploy.validate import pods
from deploy.validate.tools import run

__all__ = ["VERSIONS", "build", "check", "check_resources", "check_schema"]

VERSIONS = ("1.29", "1.37")
"""The oldest and the newest Kubernetes that the manifests are written for."""

_SCHEMAS = Path(__file__).with_name("schemas")


def check(folder: Path) -> Iterator[str]:
    """Build and check. Raises MissingTool."""
    result = run("kubectl", ["kustomize", folder])
    if result.returncode != 0 or result.stderr.strip():
        yield f"kubectl kustomize: {(result.stderr or result.stdout).strip()}"
        return
    yield from check_resources(list(yaml.safe_load_all(result.stdout)))


def build(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The resources. Raises MissingTool, and ValueError with what kubectl says."""
    result = run("kubectl", ["kustomize", folder])
    if result.returncode != 0:
        raise ValueError(result.stderr.strip())
    return list(yaml.safe_load_all(result.stdout))


def check_resources(resources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Schemas of each, and how they go together."""
    for resource in resources:
        name = f"{resource.get('kind')} {resource.get('metadata', {}).get('name')}"
        for line in check_schema(resource):
            yield f"{name}: {line}"
    yield from pods.check(resources)


def check_schema(resource: Mapping[str, Any]) -> Iterator[str]:
    """One resource, by Kubernetes' schemas or one of ours."""
    version = str(resource.get("apiVersion", ""))
    kind = str(resource.get("kind", ""))
    own = _SCHEMAS / f"{kind.lower()}.json"
    if own.is_file():
        schema = json.loads(own.read_text(encoding="utf-8"))
        wanted = schema["properties"]["apiVersion"]["const"]
        if version != wanted:
            yield f"apiVersion {version}, where the schema is of {wanted}"
        validator = jsonschema.Draft202012Validator(schema)
        for error in validator.iter_errors(resource):
            yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for template in _templates(resource):
            metadata = {"name": "pod", **template.get("metadata", {})}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            yield from _validate({**pod, "spec": template.get("spec")})
        return
    yield from _validate(resource)


def _templates(resource: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Pods inside a RayCluster: they are Kubernetes' own kind."""
    if resource.get("kind") == "RayCluster":
        spec = resource.get("spec", {})
        for group in (spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])):
            yield group.get("template", {})


def _validate(resource: Mapping[str, Any]) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(dict(resource), version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(map(str, error.absolute_path))
            yield f"Kubernetes {version}: {path}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"there is no schema: {error.message}"
