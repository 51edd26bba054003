"""Run every check; exit code 1 where anything is wrong.

python -m deploy.validate
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from deploy.validate import alerts, compose, dashboards, dockerfiles, kustomize
from deploy.validate.tools import MissingTool

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = "deploy/grafana/dashboards"
OVERLAYS = "deploy/kustomize/overlays"
# docs/operations.md has the user make them.
OVERRIDE_FOLDERS = ("./carv-server", "./carv-client")


def checks(root: Path) -> Sequence[tuple[str, Callable[[], Iterable[str]]]]:
    """(what is looked at, the check)."""
    rules = root / "deploy/prometheus/rules.yml"
    targets = [root / "deploy/kustomize/base", *sorted((root / OVERLAYS).iterdir())]
    return (
        *(
            (f"deploy/docker/{path.name}", lambda path=path: dockerfiles.check(path))
            for path in sorted((root / "deploy/docker").glob("*.Dockerfile"))
        ),
        ("docker-compose.yml", lambda: compose.check(root / "docker-compose.yml")),
        (
            "deploy/compose/tls.yml",
            lambda: compose.check_override(
                root / "docker-compose.yml", root / "deploy/compose/tls.yml", OVERRIDE_FOLDERS
            ),
        ),
        *(
            (str(path.relative_to(root)), lambda path=path: kustomize.check(path))
            for path in targets
        ),
        *(
            (f"{DASHBOARDS}/{path.name}", lambda path=path: dashboards.check(path))
            for path in sorted((root / DASHBOARDS).glob("*.json"))
        ),
        (
            "deploy/prometheus/rules.yml",
            lambda: alerts.check(rules, root / "docs/operations.md"),
        ),
        (
            "deploy/kustomize/base/prometheusrule.yaml",
            lambda: alerts.check_copy(rules, root / "deploy/kustomize/base/prometheusrule.yaml"),
        ),
        (
            "promtool",
            lambda: alerts.check_with_promtool(rules, rules.with_name("rules_test.yml")),
        ),
        (
            "deploy/compose/prometheus.yml",
            lambda: alerts.check_config(root / "deploy/compose/prometheus.yml", rules),
        ),
    )


def main() -> int:
    failed = False
    for name, check in checks(ROOT):
        try:
            found = list(check())
        except MissingTool as missing:
            print(f"deploy: {name}: skipped, because {missing} is not installed")
            continue
        failed = failed or bool(found)
        print(f"deploy: {name}: {'ok' if not found else ''}".rstrip())
        for line in found:
            print(f"  {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
