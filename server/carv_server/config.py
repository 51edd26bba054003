"""The server's configuration: frozen, parsed once at the edge."""

from __future__ import annotations

from dataclasses import dataclass, field

from carv import DEFAULT_MAX_MESSAGE_BYTES
from carv_server.history import HistoryConfig
from carv_server.latents import DEFAULT_LATENT_STORE
from carv_server.replicas.ray_config import RayConfig
from carv_server.request import RequestLimits
from carv_server.scheduling.config import SchedulerConfig
from carv_server.settings.observability import MetricsConfig, TracingConfig
from carv_server.store import StoreConfig
from carv_server.teachers.registration import EMBEDDED, TeacherRegistration
from carv_server.tenants.tenancy import TenancyConfig
from carv_server.tls import TlsConfig

__all__ = ["ServerConfig"]


@dataclass(frozen=True)
class ServerConfig:
    """Everything that ``carv serve`` can be told.

    Attributes:
        address: host:port; port 0 takes a free one.
        health_address: of a plaintext listener for health alone; "": none.
        teachers: the first is the default of requests that name none.
        device: "cpu", "cuda", "cuda:1", ... or "auto".
        dtype: "float32", "float16" or "bfloat16"; what the network computes in. "auto" is what
            the device is good at.
        compile: compile networks by torch.compile, for a few fixed batch sizes.
        cuda_graphs: capture the forwards of those batch sizes as CUDA graphs.
        tune: measure the microbatch size when teachers are loaded; else it is the scheduler's
            ``evaluation_budget``.
        warm_up: run forwards of the batch sizes in use before health says SERVING.
        torch_threads: CPU threads of one forward; 0 leaves it to torch, None is one fewer than
            there are cores. A Ray replica has those that it is given, unless a number is.
        max_message_bytes: largest request or reply.
        drain_seconds: how long in-flight requests may take after SIGTERM.
        connection_age_seconds: after which a connection is ended in good order, give or take a
            tenth; 0: never.
        connection_grace_seconds: that calls on it may take from then on; those that take longer
            end with UNAVAILABLE.
        ray: replicas as actors of a Ray cluster; None keeps the one replica in this process.
        tls: None: plaintext.
        tenancy: None: callers need no credentials.
        store: bounds of the conditionings kept, over all teachers.
        latents: bounds of the latents kept for each teacher.
        metrics, tracing: what operators see, and where.
    """

    address: str = "127.0.0.1:50051"
    health_address: str = ""
    teachers: tuple[TeacherRegistration, ...] = (EMBEDDED,)
    device: str = "auto"
    dtype: str = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    tune: bool = False
    warm_up: bool = True
    torch_threads: int | None = 0
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    drain_seconds: float = 30.0
    connection_age_seconds: float = 0.0
    connection_grace_seconds: float = 600.0
    ray: RayConfig | None = None
    tls: TlsConfig | None = None
    tenancy: TenancyConfig | None = None
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    latents: StoreConfig = DEFAULT_LATENT_STORE
    history: HistoryConfig = field(default_factory=HistoryConfig)
    limits: RequestLimits = field(default_factory=RequestLimits)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
