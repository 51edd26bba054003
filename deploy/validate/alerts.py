"""Alert rules: metrics, runbooks, the copy for Kubernetes, and promtool's own opinion."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.validate.metrics import check_expression
from deploy.validate.tools import complaints

__all__ = ["anchors", "check", "check_config", "check_copy", "check_with_promtool", "rules_of"]

_SEVERITIES = ("critical", "warning", "info")


def rules_of(path: Path) -> list[dict[str, Any]]:
    """The alerts of all groups."""
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def anchors(page: Path) -> set[str]:
    """Anchors of a Markdown page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def check(rules: Path, page: Path) -> Iterator[str]:
    """Every alert has a severity, a summary, metrics that exist and a runbook that exists."""
    there = anchors(page)
    names: set[str] = set()
    for rule in rules_of(rules):
        name = rule.get("alert", "")
        if not name or name in names:
            yield f"{name or rule}: an alert needs a name of its own"
        names.add(name)
        if rule.get("labels", {}).get("severity") not in _SEVERITIES:
            yield f"{name}: severity is none of {', '.join(_SEVERITIES)}"
        annotations = rule.get("annotations", {})
        for key in ("summary", "description"):
            if not annotations.get(key):
                yield f"{name}: has no {key}"
        target, _, anchor = str(annotations.get("runbook", "")).partition("#")
        if target != f"docs/{page.name}" or anchor not in there:
            said = annotations.get("runbook")
            yield f"{name}: runbook {said!r} is no heading of docs/{page.name}"
        for line in check_expression(rule["expr"]):
            yield f"{name}: {line}"


def check_copy(rules: Path, copy: Path) -> Iterator[str]:
    """The PrometheusRule says what the rules say."""
    resource: Any = yaml.safe_load(copy.read_text(encoding="utf-8"))
    if resource["spec"] != yaml.safe_load(rules.read_text(encoding="utf-8")):
        yield f"differs from {rules.name}; run: python -m deploy.validate.prometheusrule"


def check_with_promtool(rules: Path, tests: Path) -> Iterator[str]:
    """Syntax, and the rules' own unit tests. Raises MissingTool."""
    yield from complaints("promtool", ["check", "rules", rules])
    yield from complaints("promtool", ["test", "rules", tests])


def check_config(config: Path, rules: Path) -> Iterator[str]:
    """A Prometheus' configuration, with the rules where its container has them. Raises
    MissingTool."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / rules.name).write_bytes(rules.read_bytes())
        copied = Path(folder) / config.name
        copied.write_bytes(config.read_bytes())
        yield from complaints("promtool", ["check", "config", copied])
