"""What schemas do not ask of pods and of what goes with them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["check"]

Resource = Mapping[str, Any]
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def check(resources: Sequence[Resource]) -> Iterator[str]:
    """Hardening of every pod; probes, drain and selectors of the server's."""
    by_kind: dict[str, list[Resource]] = {}
    for resource in resources:
        by_kind.setdefault(str(resource.get("kind")), []).append(resource)
    for deployment in by_kind.get("Deployment", []):
        template = deployment["spec"]["template"]
        lines = [
            *_hardened(template["spec"]),
            *_server(template["spec"], by_kind),
            *_rollout(deployment["spec"]),
        ]
        for line in lines:
            yield f"Deployment {deployment['metadata']['name']}: {line}"
        yield from _selected(template["metadata"]["labels"], by_kind)
    for cluster in by_kind.get("RayCluster", []):
        spec = cluster["spec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            for line in _hardened(group["template"]["spec"]):
                yield f"RayCluster {cluster['metadata']['name']}: {line}"
            yield from _token(cluster, group)
    yield from _denied(by_kind.get("NetworkPolicy", []))


def _hardened(pod: Resource) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "must run as a numbered user that is not root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile must be RuntimeDefault"
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false"
    if pod.get("enableServiceLinks") is not False:
        yield "enableServiceLinks must be false: its CARV_... variables would be taken for settings"
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        name = container["name"]
        own = container.get("securityContext", {})
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: the root file system must be read-only"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation must be false"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name}: capabilities must drop ALL"
        resources = container.get("resources", {})
        for key in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(key, {})):
                yield f"{name}: {key} must state cpu and memory"
        if ":" not in container["image"] or container["image"].endswith(":latest"):
            yield f"{name}: image {container['image']} needs an exact tag"
        for mount in container.get("volumeMounts", []):
            if mount["mountPath"] == "/models" and mount.get("readOnly") is not True:
                yield f"{name}: /models must be read-only"


def _server(pod: Resource, by_kind: Mapping[str, Sequence[Resource]]) -> Iterator[str]:
    container = next(c for c in pod["containers"] if c["name"] == "server")
    config = _configuration(by_kind)
    health = str(config.get("server", {}).get("health_address", "")).rpartition(":")[2]
    for probe in _PROBES:
        port = container.get(probe, {}).get("grpc", {}).get("port")
        if str(port) != health:
            yield f"{probe} must be gRPC on the plaintext health port {health}, and is on {port}"
    if "lifecycle" not in container:
        yield "has no preStop: clients would meet refusals"
    pause = float(container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
                  .get("command", ["", "0"])[-1])  # fmt: skip
    needed = pause + float(config.get("server", {}).get("drain_seconds", 30)) + 2
    if pod.get("terminationGracePeriodSeconds", 30) <= needed:
        yield f"terminationGracePeriodSeconds must be above {needed:g}: preStop, drain and two"
    ports = {str(port["containerPort"]) for port in container["ports"]}
    sections = [("server", "address"), ("server", "health_address"), ("metrics", "address")]
    for section, key in sections:
        port = str(config.get(section, {}).get(key, "")).rpartition(":")[2]
        if port not in ports:
            yield f"{section}.{key} is on port {port}, which is none of the container's"
    variables = {v["name"]: v.get("value") for v in container.get("env", [])}
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    mounts = [m for m in container["volumeMounts"] if not m.get("readOnly")]
    for mount in mounts:
        if "emptyDir" not in volumes[mount["name"]]:
            yield f"{mount['mountPath']} must be read-only"
    if variables.get("CARV_REPLICAS") == "ray":
        if "RAY_AUTH_TOKEN" not in variables:
            yield "server: the Ray cluster needs RAY_AUTH_TOKEN"
        if pod.get("shareProcessNamespace") is not True:
            yield "shareProcessNamespace must be true: else Ray finds no raylet on this node"


def _rollout(spec: Resource) -> Iterator[str]:
    """Replicas on Ray hold their GPUs until the server that asked for them is gone."""
    container = next(c for c in spec["template"]["spec"]["containers"] if c["name"] == "server")
    on_ray = {"name": "CARV_REPLICAS", "value": "ray"} in container.get("env", [])
    if on_ray and spec.get("strategy", {}) != {"type": "Recreate"}:
        yield "strategy must be Recreate: a second server would wait for the GPUs of the first"


def _configuration(by_kind: Mapping[str, Sequence[Resource]]) -> dict[str, Any]:
    for resource in by_kind.get("ConfigMap", []):
        if "carv.toml" in resource.get("data", {}):
            return tomllib.loads(resource["data"]["carv.toml"])
    return {}


def _selected(
    labels: Mapping[str, str], by_kind: Mapping[str, Sequence[Resource]]
) -> Iterator[str]:
    def misses(selector: Mapping[str, str]) -> bool:
        return not selector.items() <= labels.items()

    for service in by_kind.get("Service", []):
        name = service["metadata"]["name"]
        if misses(service["spec"].get("selector", {})):
            yield f"Service {name}: selects no pod of the Deployment"
        if service["spec"].get("clusterIP") != "None":
            yield f"Service {name}: must be headless (clusterIP: None)"
    for budget in by_kind.get("PodDisruptionBudget", []):
        if misses(budget["spec"]["selector"]["matchLabels"]):
            yield f"PodDisruptionBudget {budget['metadata']['name']}: selects no pod"
    metrics = [s["metadata"].get("labels", {}) for s in by_kind.get("Service", [])]
    for monitor in by_kind.get("ServiceMonitor", []):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        if not any(wanted <= found.items() for found in metrics):
            yield f"ServiceMonitor {monitor['metadata']['name']}: selects no Service"


def _token(cluster: Resource, group: Resource) -> Iterator[str]:
    for container in group["template"]["spec"]["containers"]:
        names = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
        if names.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" not in names:
            where = f"RayCluster {cluster['metadata']['name']}: {container['name']}"
            yield f"{where}: must have RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"


def _denied(policies: Sequence[Resource]) -> Iterator[str]:
    denies = [p for p in policies if not p["spec"].get("podSelector")]
    if not any(set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"} for p in denies):
        yield "no NetworkPolicy denies everything by default, in and out"
    for policy in policies:
        for way in ("ingress", "egress"):
            for rule in policy["spec"].get(way, []):
                if not rule or not rule.get("from" if way == "ingress" else "to"):
                    yield f"NetworkPolicy {policy['metadata']['name']}: {way} to or from anywhere"
                if not rule.get("ports"):
                    yield f"NetworkPolicy {policy['metadata']['name']}: {way} on every port"
