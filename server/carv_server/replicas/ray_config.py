"""What ``--replicas ray`` can be told. Free of ray, so that the command line reads it anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from carv_server.replicas.autoscale import ScalePolicy

__all__ = ["RayConfig"]


@dataclass(frozen=True)
class RayConfig:
    """Replicas as actors of a Ray cluster.

    Attributes:
        address: host:port of a cluster that this machine is a node of, "auto" for the one running
            here, or "" to start one of this process's own.
        scale: how many replicas each teacher has.
        gpus_per_replica: may be a fraction; None is 1 where the cluster has GPUs, else 0.
        cpus_per_replica: what Ray sets aside, and the threads of a forward on a CPU.
        connect_seconds: until an address that does not answer is given up.
        start_seconds: until a replica that has found no place or loaded no teacher is given up.
        probe_seconds: between two probes of a replica.
        probe_timeout_seconds: until a probe that is not answered means a lost replica.
        forward_timeout_seconds: until a microbatch that is not answered means a lost replica.
        restart_seconds: before a replica is started after another; doubles with each failure.
        object_store_bytes: shared memory of a cluster of our own.
    """

    address: str = ""
    scale: ScalePolicy = field(default_factory=ScalePolicy)
    gpus_per_replica: float | None = None
    cpus_per_replica: float = 1.0
    connect_seconds: float = 20.0
    start_seconds: float = 600.0
    probe_seconds: float = 1.0
    probe_timeout_seconds: float = 5.0
    forward_timeout_seconds: float = 300.0
    restart_seconds: float = 0.5
    object_store_bytes: int = 1 << 30
