"""TLS and tenants by compose, as docs/operations.md has it: the folders that are mounted hold what
is needed and no key more, and the server takes what is in them.

Seen to fail: with the CA's key among the files, with the whole folder copied, without the name
``server`` in the certificate, and with the addresses left out of tls.yml.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from carv_server.settings.read import Given, read_settings
from deploy.validate.__main__ import ROOT
from tests.deploy.test_operations import SECTION, commands

PORTS = {"server.address": "50051", "server.health_address": "50052", "metrics.address": "9464"}


def _made(home: Path, repository: Path) -> str:
    """The page's commands for certificates, configuration and the two folders, without root and
    without an engine; output of openssl."""
    blocks = [b for b in commands(SECTION) if "openssl req" in b or "cat > carv.toml" in b]
    assert len(blocks) == 2
    prepared = "\n".join(blocks)
    prepared = "\n".join(line for line in prepared.splitlines() if not line.startswith("carv "))
    (install,) = [b for b in commands("Compose") if "sudo install" in b]
    install = install.replace("sudo ", "").replace("-o 10001 ", "")
    install = "\n".join(line for line in install.splitlines() if not line.startswith("docker "))
    script = (
        f"set -euo pipefail\numask 077\nmkdir ~/carv-server && cd ~/carv-server\n{prepared}\n"
        f"cd {repository}\n{install}\n"
        "openssl verify -verify_hostname server -CAfile carv-client/ca.crt "
        "carv-server/pki/server.crt\n"
        "openssl verify -CAfile carv-server/pki/ca.crt carv-client/rendering.crt\n"
    )
    result = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "HOME": str(home)}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("openssl", "bash", "install")),
    reason="openssl, bash or install is not installed",
)
def test_the_folders_of_the_page_are_what_the_containers_need(tmp_path: Path) -> None:
    home, repository = tmp_path / "home", tmp_path / "repository"
    home.mkdir()
    repository.mkdir()
    said = _made(home, repository)
    assert said.count(": OK\n") == 5  # three of the page, and two here

    files = [path for path in repository.rglob("*") if path.is_file()]
    assert {str(path.relative_to(repository)) for path in files} == {
        "carv-server/carv.toml",
        "carv-server/tenants.toml",
        "carv-server/pki/server.crt",
        "carv-server/pki/server.key",
        "carv-server/pki/ca.crt",
        "carv-client/rendering.crt",
        "carv-client/rendering.key",
        "carv-client/ca.crt",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o400}
    folders = [path for path in repository.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}

    content: Any = yaml.safe_load((ROOT / "deploy/compose/tls.yml").read_text(encoding="utf-8"))
    services = content["services"]
    environment = dict(services["server"]["environment"])
    assert services["server-gpu"] == services["server"]
    assert services["server"]["volumes"] == ["./carv-server:/etc/carv-server:ro"]
    assert environment.pop("CARV_CONFIG") == "/etc/carv-server/carv.toml"
    settings = read_settings(Given(repository / "carv-server/carv.toml"), environment)
    assert {key: settings.text(key).rpartition(":")[2] for key in PORTS} == PORTS
    # Published by the engine, or read by Prometheus, from outside of the container.
    for key in ("server.address", "metrics.address"):
        assert settings.text(key).startswith("0.0.0.0:")
    assert settings.requires_client_certificate
    assert [tenant.id for tenant in settings.tenants or ()] == ["rendering", "simulation"]

    assert services["client"]["volumes"] == ["./carv-client:/pki:ro"]
    named = [word.partition("=")[2] for word in services["client"]["command"] if "/pki/" in word]
    assert len(named) == 3
    for name in named:
        assert (repository / "carv-client" / name.removeprefix("/pki/")).is_file()
