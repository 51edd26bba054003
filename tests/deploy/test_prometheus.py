"""A real Prometheus scrapes a real server: every family arrives with its type, every query of the
dashboard is answered, counters equal the client's own, and alerts fire and clear.

Seen to fail: with ``carv_requests_total`` counted twice, with a panel's metric misspelt, and with
the threshold of CarvRefusals at 2.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carv_client import AsyncTeacherClient, CarvError, ClientConfig
from carv_server.observability.families import FAMILIES
from tests.repository.import_boundaries import ROOT
from tests.support.process import ServerProcess
from tests.support.prometheus import PrometheusProcess, fast_rules, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (Debian's will do)"
    ),
]

_CLEAR_SECONDS = 30.0
# 12.5 ms an evaluation and a queue of 256: those who are let in wait for about 3 s.
_DEVICE = {"event_shape": [4], "launch_seconds": 0.0, "row_seconds": 0.0125}
_QUEUE = 256
_DRAWS = 4
_FLOOD_CALLERS = 192
_FLOOD_SECONDS = 12.0
# At zero the simulated device's answer is all noise, the control variate leaves nothing of it, and
# an efficiency over nothing is not exported.
_LATENTS = np.random.default_rng(0).standard_normal((1, 4), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "simulated.json").write_text(json.dumps(_DEVICE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


def _server(folder: Path, port: int) -> ServerProcess:
    flags = ["--teacher", f"slow={folder}", "--torch-threads", "1", "--evaluation-budget", "8"]
    flags += ["--max-waiting-evaluations", str(_QUEUE)]
    return ServerProcess([*flags, "--metrics-address", f"127.0.0.1:{port}"])


@pytest.fixture(scope="module")
def server(folder: Path, metrics_port: int) -> Iterator[ServerProcess]:
    with _server(folder, metrics_port) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(
    server: ServerProcess, metrics_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusProcess]:
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8")
    place = tmp_path_factory.mktemp("prometheus")
    with PrometheusProcess(place, [f"127.0.0.1:{metrics_port}"], fast_rules(rules)) as running:
        running.wait("a scrape", 20, lambda: running.value("carv_ready") == 1)
        yield running


async def _flood(address: str, seconds: float) -> Counter[str]:
    """Callers that ask again as soon as they are answered or refused; answers by code."""
    codes: Counter[str] = Counter()
    config = ClientConfig(address=address, retry_attempts=1, timeout_seconds=30.0)
    end = asyncio.get_running_loop().time() + seconds
    async with AsyncTeacherClient(config) as client:

        async def call() -> None:
            while asyncio.get_running_loop().time() < end:
                try:
                    await client.estimate_gradient(_LATENTS, draws=_DRAWS)
                    codes["OK"] += 1
                except CarvError as error:
                    codes[error.code.name] += 1
                    await asyncio.sleep(0.5)

        await asyncio.gather(*(call() for _ in range(_FLOOD_CALLERS)))
    return codes


@dataclass(frozen=True)
class Flood:
    """What a flood brought: replies by code, alerts that fired, and a moment in its midst."""

    codes: Counter[str]
    fired: set[str]
    midst: float


@pytest.fixture(scope="module")
def flood(server: ServerProcess, prometheus: PrometheusProcess) -> Flood:
    prometheus.wait("quiet", 10, lambda: prometheus.firing() == set())

    async def watched() -> Flood:
        begun = time.time()
        running = asyncio.create_task(_flood(server.address, _FLOOD_SECONDS))
        fired: set[str] = set()
        while not running.done():
            await asyncio.sleep(0.5)
            fired |= await asyncio.to_thread(prometheus.firing)
        return Flood(await running, fired, begun + _FLOOD_SECONDS / 2)

    return asyncio.run(watched())


def test_alerts_on_a_flood_fire_and_clear(flood: Flood, prometheus: PrometheusProcess) -> None:
    assert flood.fired == {"CarvRefusals", "CarvQueueWaitHigh", "CarvDeviceSaturated"}
    prometheus.wait("all alerts cleared", _CLEAR_SECONDS, lambda: prometheus.firing() == set())


def test_counters_equal_what_the_clients_counted(
    flood: Flood, prometheus: PrometheusProcess
) -> None:
    assert set(flood.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert min(flood.codes.values()) > 100

    def counted() -> dict[str, float]:
        found = prometheus.query('sum by (code) (carv_requests_total{method="EstimateGradient"})')
        return {series["metric"]["code"]: float(series["value"][1]) for series in found}

    with suppress(TimeoutError):
        prometheus.wait("as counted", 10, lambda: counted() == dict(flood.codes))
    assert counted() == dict(flood.codes)
    assert prometheus.value("sum(carv_draws_total)") == _DRAWS * flood.codes["OK"]


def test_every_family_arrives_with_its_type(prometheus: PrometheusProcess) -> None:
    types = prometheus.types()
    for family in FAMILIES:
        # The text format of a counter may leave its _total to the samples.
        name = family.name if family.name in types else family.name.removesuffix("_total")
        if name in types:
            assert types[name] == family.kind, family.name
    seen = {family.name for family in FAMILIES if family.name in types}
    seen |= {f.name for f in FAMILIES if f.name.removesuffix("_total") in types}
    missing = {family.name for family in FAMILIES} - seen
    assert missing == set()


def test_every_query_of_the_dashboard_is_answered(
    flood: Flood, prometheus: PrometheusProcess
) -> None:
    path = ROOT / "deploy/grafana/dashboards/carv.json"
    dashboard: Any = json.loads(path.read_text(encoding="utf-8"))
    empty: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "10s")
            found = prometheus.query(re.sub(r"\$\w+", ".*", expression), flood.midst)
            if not found:
                empty.add(panel["title"])
    assert empty == set()


def test_a_server_that_dies_is_seen_and_its_return_too(
    server: ServerProcess, prometheus: PrometheusProcess, folder: Path, metrics_port: int
) -> None:
    server.process.kill()
    prometheus.wait("CarvDown", 20, lambda: prometheus.firing() == {"CarvDown"})
    with _server(folder, metrics_port):
        prometheus.wait("CarvDown cleared", 20, lambda: prometheus.firing() == set())
        prometheus.wait("a scrape", 20, lambda: prometheus.value("carv_ready") == 1)
