"""Bad Kubernetes manifests are refused: each case breaks one thing in what is built here."""

from __future__ import annotations

import base64
import copy
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest

from deploy.validate import kustomize, pods
from deploy.validate.__main__ import ROOT
from deploy.validate.tools import MissingTool

REMOVE = object()
POD = "spec.template.spec"
SERVER = f"{POD}.containers.0"
HEAD = "spec.headGroupSpec"
WORKER = "spec.workerGroupSpecs.0"


@pytest.fixture(scope="module")
def built() -> dict[str, list[Any]]:
    names = ("base", "overlays/ray", "overlays/mtls", "overlays/keda")
    try:
        return {name: list(kustomize.build(ROOT / "deploy/kustomize" / name)) for name in names}
    except MissingTool as missing:
        pytest.skip(f"{missing} is not installed")


def _resource(resources: list[Any], named: str) -> Any:
    """By ``Kind`` or ``Kind/name``."""
    kind, _, name = named.partition("/")
    return next(r for r in resources if r["kind"] == kind and name in ("", r["metadata"]["name"]))


def _broken(resources: list[Any], named: str, path: str, value: object) -> tuple[list[Any], Any]:
    resources = copy.deepcopy(resources)
    resource = _resource(resources, named)
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place: Any = resource
    for key in parents:
        place = place[key]
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return resources, resource


@pytest.mark.parametrize(
    ("where", "named", "path", "value", "message"),
    [
        ("base", "Deployment", f"{POD}.terminationGracePeriod", 60, "terminationGracePeriod"),
        ("base", "Deployment", f"{SERVER}.startupProbe.grpc.port", "health", "'integer'"),
        ("base", "PodDisruptionBudget", "spec.maxUnavailable", [], "maxUnavailable"),
        ("base", "Service/carv", "kind", "Sevice", "no schema"),
        ("base", "ServiceMonitor", "spec.endpoints.0.prot", "x", "prot"),
        ("base", "ServiceMonitor", "spec.endpoints.0.interval", "15", "'15'"),
        ("base", "PrometheusRule", "spec.groups.0.rules.0.alert", REMOVE, "not valid under"),
        ("base", "PrometheusRule", "apiVersion", "monitoring.coreos.com/v2", "was expected"),
        ("overlays/mtls", "Certificate", "spec.issuerRef", REMOVE, "issuerRef"),
        ("overlays/mtls", "Certificate", "spec.usages.0", "server", "'server'"),
        ("overlays/mtls", "Certificate", "spec.renewBefore", "7d", "'7d'"),
        ("overlays/keda", "ScaledObject", "spec.maxReplicas", 3, "maxReplicas"),
        ("overlays/keda", "ScaledObject", "spec.triggers.0.metadata.query", REMOVE, "query"),
        ("overlays/keda", "ScaledObject", "spec.triggers.0.metadata.threshold", 2, "2 is not"),
        ("overlays/ray", "RayCluster", f"{HEAD}.image", "x", "image"),
        ("overlays/ray", "RayCluster", f"{HEAD}.rayStartParams.num-cpus", 0, "0 is not"),
        ("overlays/ray", "RayCluster", f"{WORKER}.replica", 1, "replica"),
        ("overlays/ray", "RayCluster", f"{WORKER}.template.spec.hostname", 1, "'string'"),
    ],
)
def test_schemas_refuse(
    built: dict[str, list[Any]], where: str, named: str, path: str, value: object, message: str
) -> None:
    _, resource = _broken(built[where], named, path, value)
    found = list(kustomize.check_schema(resource))
    assert found
    assert any(message in line for line in found), found


SECURITY = f"{SERVER}.securityContext"
SELECTOR = "spec.selector.matchLabels"


@pytest.mark.parametrize(
    ("where", "named", "path", "value", "message"),
    [
        # hardening
        ("base", "Deployment", f"{POD}.securityContext.runAsNonRoot", REMOVE, "not root"),
        ("base", "Deployment", f"{POD}.securityContext.seccompProfile", REMOVE, "seccomp"),
        ("base", "Deployment", f"{POD}.automountServiceAccountToken", REMOVE, "automount"),
        ("base", "Deployment", f"{POD}.enableServiceLinks", REMOVE, "enableServiceLinks"),
        ("base", "Deployment", f"{SECURITY}.readOnlyRootFilesystem", False, "read-only"),
        ("base", "Deployment", f"{SECURITY}.allowPrivilegeEscalation", True, "Escalation"),
        ("base", "Deployment", f"{SECURITY}.capabilities", {"drop": ["NET_RAW"]}, "drop ALL"),
        ("base", "Deployment", f"{SERVER}.resources.limits", REMOVE, "limits"),
        ("base", "Deployment", f"{SERVER}.image", "carv", "exact tag"),
        ("base", "Deployment", f"{SERVER}.image", "carv:latest", "exact tag"),
        ("base", "Deployment", f"{SERVER}.volumeMounts.2.readOnly", REMOVE, "/models"),
        ("overlays/ray", "RayCluster", f"{WORKER}.template.spec.securityContext", {}, "not root"),
        (
            "overlays/ray",
            "RayCluster",
            f"{HEAD}.template.spec.containers.0.env",
            [],
            "RAY_AUTH_TOKEN",
        ),
        ("overlays/ray", "Deployment", f"{POD}.shareProcessNamespace", REMOVE, "no raylet"),
        ("overlays/ray", "Deployment", f"{SERVER}.env.5", REMOVE, "RAY_AUTH_TOKEN"),
        ("overlays/ray", "Deployment", "spec.strategy", {"type": "RollingUpdate"}, "Recreate"),
        ("overlays/ray", "Deployment", "spec.strategy", REMOVE, "Recreate"),
        # probes, drain, ports
        ("base", "Deployment", f"{SERVER}.livenessProbe.grpc.port", 50051, "livenessProbe"),
        ("base", "Deployment", f"{SERVER}.startupProbe", REMOVE, "startupProbe"),
        ("base", "Deployment", f"{SERVER}.lifecycle", REMOVE, "preStop"),
        ("base", "Deployment", f"{POD}.terminationGracePeriodSeconds", 37, "above 37"),
        ("base", "Deployment", f"{SERVER}.ports.2", REMOVE, "metrics.address"),
        # what goes with the pods
        ("base", "Service/carv", "spec.clusterIP", REMOVE, "headless"),
        ("base", "Service/carv", "spec.selector.x", "y", "selects no pod"),
        ("base", "PodDisruptionBudget", f"{SELECTOR}.x", "y", "selects no pod"),
        ("base", "ServiceMonitor", f"{SELECTOR}.x", "y", "selects no Service"),
        ("base", "NetworkPolicy/default-deny", "spec.policyTypes", ["Ingress"], "by default"),
        ("base", "NetworkPolicy/carv-server", "spec.egress.0", {}, "from anywhere"),
        ("base", "NetworkPolicy/carv-server", "spec.ingress.0.ports", REMOVE, "every port"),
    ],
)
def test_what_schemas_allow_is_refused(
    built: dict[str, list[Any]], where: str, named: str, path: str, value: object, message: str
) -> None:
    assert list(pods.check(built[where])) == []
    resources, _ = _broken(built[where], named, path, value)
    found = list(pods.check(resources))
    assert found
    assert any(message in line for line in found), found


def test_a_kustomization_that_does_not_build_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nothing.yaml]", encoding="utf-8")
    try:
        assert any("nothing.yaml" in line for line in kustomize.check(tmp_path))
    except MissingTool as missing:
        pytest.skip(f"{missing} is not installed")


def test_the_overlay_of_the_operations_page_builds(
    built: dict[str, list[Any]], tmp_path: Path
) -> None:
    """What a team would deploy: GPUs, mTLS and scaling at once, with files of its own."""
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    head = "    # overlays/ours/kustomization.yaml\n"
    block = page.partition(head)[2].partition("\n\n")[0]
    for part in ("kustomize", "grafana"):
        shutil.copytree(ROOT / "deploy" / part, tmp_path / part)
    overlay = tmp_path / "kustomize/overlays/ours"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(textwrap.dedent(block), encoding="utf-8")
    base = ROOT / "deploy/kustomize/base"
    config = (base / "carv.toml").read_text(encoding="utf-8").replace("= 30", "= 31")
    (overlay / "carv.toml").write_text(config, encoding="utf-8")
    tenants = '[[tenants]]\nid = "x"\nspiffe_ids = ["spiffe://example.org/x"]\n'
    (overlay / "tenants.toml").write_text(tenants, encoding="utf-8")

    assert list(kustomize.check(overlay)) == []
    resources = list(kustomize.build(overlay))
    deployment = _resource(resources, "Deployment")
    assert "replicas" not in deployment["spec"]
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "registry.example.org/carv:0.1.0-cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["CARV_DEVICE"] == "cuda"
    assert variables["CARV_TLS_CERTIFICATE"] == "/etc/carv/tls/tls.crt"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    name = volumes["config"]["configMap"]["name"]
    assert _resource(resources, f"ConfigMap/{name}")["data"]["carv.toml"] == config
    secret = _resource(resources, f"Secret/{volumes['tenants']['secret']['secretName']}")
    assert base64.b64decode(secret["data"]["tenants.toml"]).decode() == tenants
    assert secret["metadata"]["name"] == "carv-tenants", "no hash: pods take a change as it comes"
