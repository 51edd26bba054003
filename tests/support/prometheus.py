"""A real Prometheus on a free loopback port, with this repository's alert rules in fast motion."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

__all__ = ["PrometheusProcess", "fast_rules", "free_port"]

_START_SECONDS = 30.0
_WINDOW, _FOR = "5s", "1s"


def free_port() -> int:
    """A loopback port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fast_rules(text: str) -> str:
    """The same alerts with windows of seconds: ``[10m]`` becomes ``[5s]``, ``for: 5m`` ``for: 1s``.
    Expressions and thresholds stay."""
    text = re.sub(r"\[\d+[mh]\]", f"[{_WINDOW}]", text)
    return re.sub(r"for: \d+[smh]", f"for: {_FOR}", text)


class PrometheusProcess:
    """Context manager: ready inside.

    Args:
        folder: for its configuration and data.
        targets: host:port of the metrics ports, scraped twice a second as job "carv".
        rules: text of a rules file.
    """

    def __init__(self, folder: Path, targets: Collection[str], rules: str) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        (folder / "rules.yml").write_text(rules, encoding="utf-8")
        scrape = {"job_name": "carv", "static_configs": [{"targets": list(targets)}]}
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [scrape],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        program = shutil.which("prometheus")
        assert program is not None
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._address}",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> PrometheusProcess:
        self.wait("Prometheus itself", _START_SECONDS, self._ready)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def query(self, expression: str, moment: float | None = None) -> list[Any]:
        """Series of an instant query, now or at a time. Raises RuntimeError where Prometheus
        refuses it."""
        at = {} if moment is None else {"time": str(moment)}
        answer = self._get("query", query=expression, **at)
        return answer["data"]["result"]

    def value(self, expression: str) -> float:
        """Of the one series that the query gives; 0 where it gives none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0

    def types(self) -> dict[str, str]:
        """Type by family, as scraped."""
        return {name: each[0]["type"] for name, each in self._get("metadata")["data"].items()}

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        alerts = self._get("alerts")["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait(self, what: str, seconds: float, done: Callable[[], bool]) -> None:
        """Until something is so. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} within {seconds:g} s")
            time.sleep(0.1)

    def _ready(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text(encoding="utf-8")
        try:
            with urlopen(f"http://{self._address}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"http://{self._address}/api/v1/{what}?{urlencode(parameters)}"
        try:
            with urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except OSError as error:
            reason = getattr(error, "read", lambda: b"")()
            raise RuntimeError(f"{parameters}: {error} {reason!r}") from error
