"""The configuration files and variables that are deployed are ones that the server takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from carv_server.settings.mistakes import ConfigurationError
from carv_server.settings.read import Given, read_settings
from carv_server.settings.table import PUBLIC_WORDS, SETTINGS
from carv_server.settings.tenants import load_tenants
from deploy.validate.__main__ import ROOT

WORDS = {"CARV_PUBLIC_WITHOUT_CREDENTIALS": PUBLIC_WORDS}
BASE = ROOT / "deploy/kustomize/base"
# Variables beside the settings' own: which file, which teachers, a client's token.
_OTHERS = {"CARV_CONFIG", "CARV_TEACHER", "CARV_TOKEN"}


def _addresses(file: Path, environment: Mapping[str, str]) -> dict[str, str]:
    settings = read_settings(Given(file), environment)
    keys = ("server.address", "server.health_address", "metrics.address")
    return {key: settings.text(key).rpartition(":")[2] for key in keys}


PORTS = {"server.address": "50051", "server.health_address": "50052", "metrics.address": "9464"}


def test_the_image_starts_once_it_is_told_so_in_words() -> None:
    file = ROOT / "deploy/docker/carv.toml"
    assert _addresses(file, WORDS) == PORTS
    with pytest.raises(ConfigurationError, match="credentials"):
        read_settings(Given(file), {})


@pytest.mark.parametrize("service", ["server", "server-gpu"])
def test_compose(service: str) -> None:
    content: Any = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    environment = content["services"][service]["environment"]
    assert _addresses(ROOT / "deploy/compose/carv.toml", environment) == PORTS


def test_kubernetes(tmp_path: Path) -> None:
    """With the tenants' file where the test has it; nobody is let in by it."""
    text = (BASE / "carv.toml").read_text(encoding="utf-8")
    file = tmp_path / "carv.toml"
    tenants = BASE / "tenants.toml"
    file.write_text(text.replace("/etc/carv/tenants/tenants.toml", str(tenants)), encoding="utf-8")
    assert _addresses(file, {}) == PORTS
    assert read_settings(Given(file), {}).tenants == ()
    assert load_tenants(tenants, None) == ()


def test_every_variable_is_a_setting() -> None:
    known = {setting.variable for setting in SETTINGS} | _OTHERS
    folders = [ROOT / "docker-compose.yml", ROOT / "docs/operations.md"]
    folders += [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    used: dict[str, Path] = {}
    for path in folders:
        if path.suffix not in {".py", ".pyc"}:
            text = path.read_text(encoding="utf-8")
            used |= dict.fromkeys(re.findall(r"\bCARV_[A-Z_]*[A-Z]\b", text), path)
    assert {"CARV_TLS_CERTIFICATE", "CARV_RAY_ADDRESS"} <= used.keys()
    assert {name: path for name, path in used.items() if name not in known} == {}
