"""A server on the device under closed loops of clients."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.device.gauge import Gauge
from benchmarks.device.models import Model
from carv_server.bench.load.flow import Load, Observed
from carv_server.bench.load.measure import measure
from carv_server.bench.load.processes import descendants
from carv_server.bench.load.requests import create_handle, estimate_payload, service_target
from carv_server.bench.service.desk import latents
from carv_server.demo.process import running_server

__all__ = ["MODES", "serve"]

MODES: dict[str, Sequence[str]] = {
    "eager": (),
    "graphs": ("--cuda-graphs",),
    "compiled": ("--compile",),
    "compiled, graphs": ("--compile", "--cuda-graphs"),
    "graphs, budget 64": ("--cuda-graphs", "--evaluation-budget", "64"),
}
_DRAWS, _GUIDANCE = 8, 7.5
_START_SECONDS = 600.0
_ROW_CLIENTS = (1, 4, 16, 64)
_DRAW_CLIENTS = (1, 4, 16, 64)
# Behind so many others a request waits: until then a loop is not in its stride. Answers come a
# microbatch at a time, which a short window would count by luck.
_STRETCH = {1: 1.0, 4: 1.0, 16: 1.5, 64: 3.0}
_WARM_SECONDS = {1: 0.7, 4: 0.8, 16: 1.5, 64: 3.0}


def serve(
    model: Model,
    folder: Path,
    work: Path,
    mode: str,
    device: str,
    seconds: float,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """What the server says of itself, then each load as it is measured."""
    log = work / f"{model.name}-{mode.replace(', ', '-')}.log"
    arguments = ["--device", device, "--teacher", f"bench={folder}", *MODES[mode]]
    gauge = Gauge()
    began = time.perf_counter()
    with running_server(log, threads=4, arguments=arguments, timeout=_START_SECONDS) as server:
        ready = time.perf_counter() - began
        yield {"mode": mode, "ready_seconds": ready, **_own_words(log.read_text())}
        prompts = [None] if model.prompt is None else [model.prompt, None]
        handles = [create_handle(server.address, prompt) for prompt in prompts]
        x = latents(1, model.event_shape)
        coefficients = [1.0] if len(handles) == 1 else [_GUIDANCE, 1.0 - _GUIDANCE]
        loads = {
            "draws": (estimate_payload(x, handles, coefficients, _DRAWS), _DRAWS * len(handles)),
            "row": (estimate_payload(x, handles[:1], [1.0], 1), 1),
        }
        for name, clients in (("draws", _DRAW_CLIENTS), ("row", _ROW_CLIENTS)):
            payload, evaluations = loads[name]
            file = work / f"{model.name}-{name}"
            file.write_bytes(payload)
            for count in clients:
                say(f"{model.name}, {mode}: {name}, {count} clients")
                load = Load(
                    service_target(server.address, "EstimateGradient"),
                    {"request": str(file)},
                    count,
                    _STRETCH[count] * seconds,
                    _WARM_SECONDS[count],
                )
                gauge.start()
                window = measure([load], lambda: descendants(server.pid))
                readings = gauge.stop()
                seen = window.first
                yield {
                    "mode": mode,
                    "load": name,
                    "evaluations": evaluations,
                    "clients": count,
                    "rate": evaluations * seen.rate,
                    "mean_ms": 1e3 * _mean(seen),
                    "median_ms": 1e3 * seen.quantile(0.5),
                    "p99_ms": 1e3 * seen.quantile(0.99),
                    "cores": window.server_cpu_seconds / seen.seconds,
                    "failures": dict(seen.failures),
                    **asdict(readings),
                }


def _mean(seen: Observed) -> float:
    every = [seconds for each in seen.latencies.values() for seconds in each]
    return sum(every) / len(every) if every else math.nan


def _own_words(log: str) -> dict[str, Any]:
    budget = re.search(r"microbatches of (\d+) evaluations; (.*)", log)
    parity = re.search(r"(\w+); the gradient of a fixed probe is within (\S+) of", log)
    return {
        "budget": int(budget[1]) if budget else None,
        "tuning": budget[2] if budget else None,
        "dtype": parity[1] if parity else None,
        "gradient_error": float(parity[2]) if parity else None,
    }
