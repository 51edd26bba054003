"""The server's configuration: frozen, parsed once at the edge."""

from __future__ import annotations

from dataclasses import dataclass, field

from carv import DEFAULT_MAX_MESSAGE_BYTES
from carv_server.conditioning import StoreConfig
from carv_server.history import HistoryConfig
from carv_server.replicas.ray_config import RayConfig
from carv_server.request import RequestLimits
from carv_server.scheduler import SchedulerConfig
from carv_server.teachers.registry import EMBEDDED, TeacherRegistration

__all__ = ["ServerConfig"]


@dataclass(frozen=True)
class ServerConfig:
    """Everything that ``carv serve`` can be told.

    Attributes:
        address: host:port; port 0 takes a free one.
        teachers: the first is the default of requests that name none.
        device: "cpu", "cuda", "cuda:1", ... or "auto".
        dtype: "float32", "float16" or "bfloat16"; what the network computes in.
        torch_threads: CPU threads of one forward; 0 leaves it to torch, or to the CPUs that a
            Ray replica is given.
        max_message_bytes: largest request or reply.
        drain_seconds: how long in-flight requests may take after SIGTERM.
        ray: replicas as actors of a Ray cluster; None keeps the one replica in this process.
    """

    address: str = "127.0.0.1:50051"
    teachers: tuple[TeacherRegistration, ...] = (EMBEDDED,)
    device: str = "auto"
    dtype: str = "float32"
    torch_threads: int = 0
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    drain_seconds: float = 30.0
    ray: RayConfig | None = None
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    limits: RequestLimits = field(default_factory=RequestLimits)
