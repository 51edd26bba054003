"""Write the PrometheusRule of the Kubernetes base from deploy/prometheus/rules.yml.

python -m deploy.validate.prometheusrule
"""

from __future__ import annotations

import textwrap
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
_HEAD = """\
# Made from deploy/prometheus/rules.yml: python -m deploy.validate.prometheusrule
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: carv
spec:
"""


def main() -> None:
    """Text for text, so that the expressions stay readable."""
    text = (ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8")
    body = text[text.index("groups:") :]
    target = ROOT / "deploy/kustomize/base/prometheusrule.yaml"
    target.write_text(_HEAD + textwrap.indent(body, "  "), encoding="utf-8")


if __name__ == "__main__":
    main()
