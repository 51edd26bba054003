"""docs/operations.md as a new user would follow it: a two-tenant mTLS server from nothing, command
by command, with other ports and this environment's ``carv``.

Seen to fail: with the tenant's SPIFFE id misspelt in the page's tenants.toml, with the client's
certificate left out, and with a server that reads its certificate once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.validate.__main__ import ROOT
from tests.support.prometheus import free_port

PAGE = ROOT / "docs/operations.md"
SECTION = "A server for two tenants, from nothing"
_SECONDS = 300


def commands(section: str) -> list[str]:
    """The indented blocks of a section of the page."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    return [re.sub(r"^ {4}", "", b, flags=re.MULTILINE).strip("\n") for b in blocks if b.strip()]


def script() -> str:
    """Those of the first section, less what installs, what needs a model and what never ends."""
    blocks = [b for b in commands(SECTION) if "venv" not in b and "/models/" not in b]
    text = "\n".join(blocks)
    text = re.sub(r"^prometheus .*\n?", "", text, flags=re.MULTILINE)
    # A command that is said to fail must, and with that code.
    fails = r"^(carv .*?)\s+# exit code (\d+)$"
    text = re.sub(fails, r"code=0; \1 || code=$?; [ $code -eq \2 ]", text, flags=re.MULTILINE)
    for port in ("50051", "50052", "9464"):
        text = text.replace(port, str(free_port()))
    # Where a command fails the server ends too; it would hold the output open.
    trap = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"
    return f"set -euo pipefail\numask 077\n{trap}\n{text}\nwait %1\necho stopped with $?\n"


@pytest.mark.slow
@pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("openssl", "curl", "bash")),
    reason="openssl, curl or bash is not installed",
)
def test_the_page_works_command_by_command(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    carv = programs / "carv"
    carv.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m carv_server "$@"\n', encoding="utf-8")
    carv.chmod(0o700)
    (programs / "python").symlink_to(sys.executable)
    folder = tmp_path / "server"
    folder.mkdir()
    roots = [str(ROOT / name) for name in ("proto", "client", "server")]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("CARV_")}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(roots)
    result = subprocess.run(
        ["bash", "-c", script()], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=_SECONDS, check=False,
    )  # fmt: skip
    said = f"{result.stdout}\n{result.stderr}"
    assert result.returncode == 0, said
    assert result.stdout.count(": OK\n") == 3, said  # certificates
    assert "sound: 1 teachers, 2 tenants" in result.stdout
    assert re.search(r"^shapes .*stable-diffusion", result.stdout, re.MULTILINE), said
    assert "gradient_norm" in result.stdout
    assert "carv_ready 1.0" in result.stdout
    for tenant in ("rendering", "simulation"):
        counted = rf'^carv_requests_total\{{code="OK",.*tenant="{tenant}"\}}'
        assert re.search(counted, result.stdout, re.MULTILINE), said
    before, after = re.findall(r"^serial=(\w+)$", result.stdout, re.MULTILINE)
    assert before != after
    assert "stopped with 0" in result.stdout
