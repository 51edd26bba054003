"""Names and labels of metrics in PromQL, against those that a server has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

from carv.errors import Reason
from carv_server.observability.families import FAMILIES

__all__ = ["check_expression", "known"]

# Of Prometheus itself, and of the process collector (prometheus_client's, under our prefix).
_OTHERS: Mapping[str, frozenset[str]] = {
    "up": frozenset(),
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
}
_PROCESS = (
    "cpu_seconds_total",
    "resident_memory_bytes",
    "virtual_memory_bytes",
    "start_time_seconds",
    "open_fds",
    "max_fds",
)
# Labels that a scrape adds.
_ANYWHERE = frozenset({"job", "instance", "namespace", "pod", "service"})

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"([A-Za-z_]\w*)\s*(?:=~|!~|!=|=)")
_REASONS = re.compile(r'\breason\s*=~?\s*"([A-Z_|]*)"')
_METRIC = re.compile(r"\b(carv_\w+|up|ALERTS)\b")


@cache
def known() -> Mapping[str, frozenset[str]]:
    """Labels by the name of a series."""
    names = dict(_OTHERS)
    names |= {f"carv_process_{name}": frozenset() for name in _PROCESS}
    for family in FAMILIES:
        labels = frozenset(family.labels)
        if family.kind == "histogram":
            names[f"{family.name}_bucket"] = labels | {"le"}
            names |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
        else:
            names[family.name] = labels
    return names


def check_expression(expression: str) -> Iterator[str]:
    """What a PromQL expression asks for that no server has.

    Syntax is promtool's business; dashboards' variables ($job) are taken as they stand.
    """
    bare = _STRING.sub('""', expression)
    names = known()
    for name in sorted(set(_METRIC.findall(bare))):
        if name not in names:
            yield f"no server has a metric {name}"
    for name, matchers in _SELECTOR.findall(bare):
        for label in _MATCHER.findall(matchers):
            if name in names and label not in names[name] | _ANYWHERE:
                yield f"{name} has no label {label}"
    for reasons in _REASONS.findall(expression):
        for reason in reasons.split("|"):
            if reason not in set(Reason):
                yield f"there is no reason {reason}"
