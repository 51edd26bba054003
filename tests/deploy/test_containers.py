"""Bad Dockerfiles and compose files are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.validate import compose, dockerfiles
from deploy.validate.__main__ import OVERRIDE_FOLDERS, ROOT

Edit = Callable[[Any], object]
OVER = "deploy/compose/tls.yml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FROM python:3.11.14-slim-bookworm\n", "FROM python:3.11\n", "name an exact version"),
        ("USER 10001", "USER carv", "give a number"),
        ("USER 10001", "USER 0", "give a number"),
        ('ENTRYPOINT ["carv"]', "ENTRYPOINT carv", "exec form"),
        ("HEALTHCHECK", "# HEALTHCHECK", "has no HEALTHCHECK"),
        ("RUN useradd", "RUN apt-get install gcc && useradd", "DL3008"),
        ("STOPSIGNAL SIGTERM", "ADD https://x.example/y /", "ADD is not known"),
    ],
)
def test_a_bad_dockerfile_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    source = ROOT / "deploy/docker/server-cpu.Dockerfile"
    text = source.read_text(encoding="utf-8")
    assert old in text
    text = text.replace(old, new)
    if new.startswith("# HEALTHCHECK"):  # its continuation line too
        text = text.replace(
            '    CMD ["python", "/opt/carv/healthcheck.py", "127.0.0.1:50052"]\n', ""
        )
    broken = tmp_path / source.name
    broken.write_text(text, encoding="utf-8")
    shutil.copy(f"{source}.dockerignore", tmp_path)
    assert any(message in line for line in dockerfiles.check(broken))


def test_a_dockerfile_without_its_ignore_file_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/docker/client.Dockerfile", tmp_path)
    assert any("dockerignore" in line for line in dockerfiles.check(tmp_path / "client.Dockerfile"))


def _edit_service(name: str, **changes: object) -> Edit:
    return lambda content: content["services"][name].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit_service("server", read_only=False), "read_only"),
        (_edit_service("grafana", cap_drop=["NET_RAW"]), "cap_drop"),
        (_edit_service("server", cap_add=["SYS_ADMIN"]), "given back"),
        (_edit_service("client", security_opt=[]), "no-new-privileges"),
        (_edit_service("server", ports=["50051:50051"]), "beyond loopback"),
        (_edit_service("prometheus", deploy={}), "must bound"),
        (_edit_service("prometheus", image="prom/prometheus:latest"), "exact tag"),
        (_edit_service("grafana", healthcheck=None), "healthcheck"),
        (_edit_service("server", volumes=["./deploy/compose/carv.toml:/x"]), "read-only"),
        (_edit_service("server", volumes=["./nothing:/x:ro"]), "is not there"),
        (_edit_service("server", comand=["serve"]), "comand"),  # the schema
    ],
)
def test_a_bad_compose_file_is_refused(tmp_path: Path, edit: Edit, message: str) -> None:
    content: Any = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    content = json.loads(json.dumps(content))  # merged keys, without aliases
    edit(content)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert any(message in line for line in compose.check(broken))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit_service("server", volumes=["./carv-server:/etc/carv-server"]), "read-only"),
        (_edit_service("server-gpu", volumes=["./carv:/etc/carv-server:ro"]), "is not there"),
        (_edit_service("server", ports=["50051:50051"]), "beyond loopback"),
        (_edit_service("client", cap_add=["NET_RAW"]), "given back"),
        (_edit_service("client", comand=[]), "comand"),  # the schema
        (lambda content: content["services"].update(sever={}), "is no service"),
    ],
)
def test_a_bad_file_over_the_compose_file_is_refused(
    tmp_path: Path, edit: Edit, message: str
) -> None:
    content: Any = yaml.safe_load((ROOT / OVER).read_text(encoding="utf-8"))
    content = json.loads(json.dumps(content))
    edit(content)
    broken = tmp_path / "tls.yml"
    broken.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = list(compose.check_override(ROOT / "docker-compose.yml", broken, OVERRIDE_FOLDERS))
    assert any(message in line for line in found), found
