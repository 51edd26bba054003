"""``carv demo`` as a newcomer runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.outputs import check_metrics, check_pictures, check_report


@pytest.mark.slow
def test_quick_demo(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    command = [sys.executable, "-W", "error", "-m", "carv_server", "demo", "--quick"]
    done = subprocess.run(
        [*command, "--prompt", "a blue cube", "--budget-seconds", "3", "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"plain SDS, K = 1: \d+ iterations in \d+\.\d s of compute", done.stdout)
    assert f"wrote {output / 'report.html'} in " in done.stdout
    assert re.search(r"\[ *\d+ s, +\d+ %\] scoring held-out views", done.stderr)
    metrics = check_metrics(output, seeds=1, looks=4)
    assert metrics["prompt"] == "a blue cube" and metrics["teacher"]["id"] == "shapes"
    assert len(metrics["held_out_views"]) >= 6 and len(metrics["classifier_prompts"]) == 13
    for method in metrics["methods"].values():
        for run in method["runs"]:
            each = run["compute_seconds"] / run["iterations"]
            # Iterations differ in cost on a busy machine; two of them are room enough.
            assert abs(run["compute_seconds"] - metrics["budget_seconds"]) < 2 * each
    check_pictures(output)
    check_report(output)
    assert "stopped" in (output / "server.log").read_text()
    assert os.listdir(tmp_path) == ["deep"]
