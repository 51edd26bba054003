"""Everything that is deployed passes every check of ``make lint``."""

from __future__ import annotations

import pytest

from deploy.validate.__main__ import ROOT, checks
from deploy.validate.tools import MissingTool


@pytest.mark.parametrize("name", [name for name, _ in checks(ROOT)])
def test_the_repository_passes(name: str) -> None:
    try:
        assert list(dict(checks(ROOT))[name]()) == []
    except MissingTool as missing:
        pytest.skip(f"{missing} is not installed")


def test_every_overlay_is_looked_at() -> None:
    names = {name for name, _ in checks(ROOT)}
    overlays = {
        f"deploy/kustomize/overlays/{name}" for name in ("single-gpu", "ray", "mtls", "keda")
    }
    assert {"deploy/kustomize/base", *overlays} <= names
