"""What a driver is told and what it tells: plain values, as JSON between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_server.bench.load.wire import Target

__all__ = ["Load", "Observed", "decode_load", "decode_observed", "encode"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Load:
    """One window of load on one target.

    Attributes:
        payloads: files of request bytes by label; requests take them in random order, equally
            often.
        clients: of a closed loop, each with one request in flight; of an open loop, connections
            that its requests are dealt over.
        rate: requests a second of an open loop (Poisson arrivals); 0 for a closed loop.
        pause_seconds: between the requests of a client of a closed loop.
        warm_seconds: of the same load before the window.
        seed: of arrivals and of the order of payloads.
    """

    target: Target
    payloads: Mapping[str, str]
    clients: int
    seconds: float
    warm_seconds: float = 0.5
    rate: float = 0.0
    pause_seconds: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Observed:
    """What happened in the window.

    Attributes:
        seconds: its length.
        latencies: seconds of the good requests, by label. Of a closed loop: those that ended in
            the window. Of an open loop: those that were due in it, each from the moment it was
            due, so that a client that falls behind does not hide waiting.
        failures: how many requests failed, by what the failure said.
        client_cpu_seconds: processor time of the driver.
    """

    seconds: float
    latencies: Mapping[str, Sequence[float]]
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    client_cpu_seconds: float = 0.0

    @property
    def requests(self) -> int:
        return sum(len(values) for values in self.latencies.values())

    @property
    def rate(self) -> float:
        """Good requests a second."""
        return self.requests / self.seconds

    def quantile(self, share: float, label: str | None = None) -> float:
        """Of the latencies, seconds; NaN where there are none."""
        chosen = self.latencies.values() if label is None else [self.latencies.get(label, ())]
        values: Float64Array = np.concatenate([np.asarray(each, np.float64) for each in chosen])
        return float(np.quantile(values, share)) if len(values) else float("nan")


def encode(value: Load | Observed) -> dict[str, Any]:
    """For JSON."""
    return asdict(value)


def decode_load(stated: Mapping[str, Any]) -> Load:
    fields: dict[str, Any] = dict(stated)
    fields["target"] = Target(**fields["target"])
    return Load(**fields)


def decode_observed(stated: Mapping[str, Any]) -> Observed:
    return Observed(**stated)
