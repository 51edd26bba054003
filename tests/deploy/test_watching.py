"""Bad dashboards and alert rules are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.validate import alerts, dashboards
from deploy.validate.__main__ import ROOT
from deploy.validate.tools import MissingTool

Edit = Callable[[Any], object]
COPY = ROOT / "deploy/kustomize/base/prometheusrule.yaml"


def _panel(dashboard: Any, kind: str = "timeseries") -> Any:
    return next(panel for panel in dashboard["panels"] if panel["type"] == kind)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("uid"), "no uid"),
        (lambda d: _panel(d).update(id=1), "its id"),
        (lambda d: _panel(d).update(type="graf"), "graf"),
        (lambda d: _panel(d)["gridPos"].update(x=20), "24 columns"),
        (lambda d: _panel(d)["gridPos"].update(y=0, x=0), "lies over"),
        (lambda d: _panel(d).pop("description"), "description"),
        (lambda d: _panel(d).update(targets=[]), "no query"),
        (lambda d: _panel(d)["targets"][0].update(expr="carv_request_total"), "no server has"),
        (lambda d: _panel(d)["targets"][0].update(expr='carv_ready{teacher="x"}'), "no label"),
        (lambda d: _panel(d)["targets"][0].update(expr='carv_ready{job="$jobs"}'), "$jobs"),
        (lambda d: _panel(d)["targets"][0].update(expr="sum(carv_ready"), "brackets"),
        (lambda d: _panel(d)["targets"].append(_panel(d)["targets"][0]), "refId"),
    ],
)
def test_a_bad_dashboard_is_refused(tmp_path: Path, edit: Edit, message: str) -> None:
    source = ROOT / "deploy/grafana/dashboards/carv.json"
    dashboard: Any = json.loads(source.read_text(encoding="utf-8"))
    edit(dashboard)
    broken = tmp_path / source.name
    broken.write_text(json.dumps(dashboard), encoding="utf-8")
    assert any(message in line for line in dashboards.check(broken))


RULES = ROOT / "deploy/prometheus/rules.yml"
PAGE = ROOT / "docs/operations.md"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("severity: critical", "severity: urgent", "severity"),
        ("#carvdown", "#carvdwon", "runbook"),
        ("carv_replicas{", "carv_replica{", "no server has a metric carv_replica"),
        ("QUEUE_FULL", "QUEUE_FUL", "no reason QUEUE_FUL"),
        ("state=~", "stat=~", "no label stat"),
        ("alert: CarvNotReady", "alert: CarvDown", "a name of its own"),
    ],
)
def test_bad_rules_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = RULES.read_text(encoding="utf-8")
    assert old in text
    broken = tmp_path / RULES.name
    broken.write_text(text.replace(old, new), encoding="utf-8")
    assert any(message in line for line in alerts.check(broken, PAGE))
    assert list(alerts.check_copy(broken, COPY)) != []


def test_promtool_refuses_rules_that_do_not_fire(tmp_path: Path) -> None:
    for name in ("rules.yml", "rules_test.yml"):
        shutil.copy(RULES.with_name(name), tmp_path)
    broken = tmp_path / "rules.yml"
    text = broken.read_text(encoding="utf-8")
    broken.write_text(text.replace("for: 10m", "for: 30m"), encoding="utf-8")
    try:
        found = list(alerts.check_with_promtool(broken, tmp_path / "rules_test.yml"))
    except MissingTool as missing:
        pytest.skip(f"{missing} is not installed")
    assert any("CarvDown" in line for line in found)
    broken.write_text(text.replace("== 0\n", "=== 0\n", 1), encoding="utf-8")
    found = list(alerts.check_with_promtool(broken, tmp_path / "rules_test.yml"))
    assert any("parse error" in line for line in found)


def test_every_alert_is_seen_firing_and_not_firing() -> None:
    tests: Any = yaml.safe_load(RULES.with_name("rules_test.yml").read_text(encoding="utf-8"))
    firing: set[str] = set()
    quiet: set[str] = set()
    for test in tests["tests"]:
        for case in test["promql_expr_test"]:
            name = case["expr"].partition('alertname="')[2].partition('"')[0]
            (firing if case.get("exp_samples") else quiet).add(name)
    names = {rule["alert"] for rule in alerts.rules_of(RULES)}
    assert firing == quiet == names
