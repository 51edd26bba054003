"""Two minutes at full load: no failure, no great leak, prompt health; and a server that leaks on
purpose is caught by the same check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ARGUMENTS = ["--minutes", "2", "--control-minutes", "1", "--largest-slope", "15"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_soak_and_its_leaking_control() -> None:
    """``make soak`` runs it for ten minutes, with a bound of 1 MB a minute: in the first two caches
    still fill. The control, which keeps 2 KiB of every answer, is what breaks it: the exit code is
    1 where the server grows, or the control does not."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *ARGUMENTS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    said = finished.stdout.splitlines()
    assert said[0].startswith("server:") and "flat" in said[0]
    assert said[1].startswith("leaking control:") and "grows" in said[1]
