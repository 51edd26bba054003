"""Grafana dashboards: the parts that Grafana would not miss loudly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.validate.metrics import check_expression

__all__ = ["check"]

_COLUMNS = 24
_KINDS = {"row", "timeseries", "stat", "table"}


def check(path: Path) -> Iterator[str]:
    """Structure, layout, variables, and every metric and label of every query."""
    try:
        dashboard: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"is not JSON: {error}"
        return
    for key in ("uid", "title", "schemaVersion", "panels", "templating"):
        if not dashboard.get(key):
            yield f"has no {key}"
            return
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    ids: set[int] = set()
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        title = panel.get("title") or "a panel without a title"
        if panel.get("id") in ids or panel.get("id") is None:
            yield f"{title}: its id is missing, or another's"
        ids.add(panel.get("id"))
        if panel.get("type") not in _KINDS:
            yield f"{title}: type {panel.get('type')!r} is none of {', '.join(sorted(_KINDS))}"
        yield from _place(panel, title, taken)
        if panel.get("type") != "row":
            yield from _queries(panel, title, variables)


def _place(panel: Any, title: str, taken: dict[tuple[int, int], str]) -> Iterator[str]:
    grid = panel.get("gridPos", {})
    if set(grid) != {"x", "y", "w", "h"} or grid["x"] + grid["w"] > _COLUMNS:
        yield f"{title}: gridPos {grid} is not within {_COLUMNS} columns"
        return
    for x in range(grid["x"], grid["x"] + grid["w"]):
        for y in range(grid["y"], grid["y"] + grid["h"]):
            if (other := taken.setdefault((x, y), title)) is not title:
                yield f"{title}: lies over {other}"
                return


def _queries(panel: Any, title: str, variables: set[str]) -> Iterator[str]:
    if not panel.get("description"):
        yield f"{title}: has no description"
    targets: list[Any] = panel.get("targets") or []
    if not targets:
        yield f"{title}: has no query"
    if len({target.get("refId") for target in targets}) != len(targets):
        yield f"{title}: queries share a refId"
    for target in targets:
        expression = str(target.get("expr", ""))
        used = {name for name in re.findall(r"\$\{?(\w+)", expression) if not name.startswith("__")}
        used |= set(re.findall(r"\$\{(\w+)\}", str(target.get("datasource", {}).get("uid", ""))))
        for name in sorted(used - variables):
            yield f"{title}: there is no variable ${name}"
        if expression.count("(") != expression.count(")"):
            yield f"{title}: brackets do not match in {expression}"
        for line in check_expression(expression):
            yield f"{title}: {line}"
