"""The one table of the server's settings: key, variable, flag, type, range, default and text.

The parser of ``carv serve``, the reader of the file, ``carv config show`` and
docs/configuration.md are all made from it.
"""

from __future__ import annotations

from collections.abc import Mapping

from carv import DEFAULT_MAX_MESSAGE_BYTES
from carv_server.settings.kinds import Choice, Flag, Number, Text
from carv_server.settings.setting import Setting

__all__ = ["PUBLIC_WORDS", "SECTIONS", "SETTINGS"]

PUBLIC_WORDS = "anyone who reaches this address may use it"
"""What ``server.public_without_credentials`` must say."""


SECTIONS: Mapping[str, str] = {
    "": "At the top of the file, ahead of the first table.",
    "server": "Where the server listens and how it computes.",
    "tls": "Certificates. They are read again while the server runs; new connections get new ones.",
    "limits": "Bounds on one request. `GetTeacher` states them to clients.",
    "scheduler": "The queue in front of each teacher.",
    "handles": "What is kept for clients by handle. Handles are private to a tenant.",
    "history": "What past draws taught, for the adaptive proposal. Private to a tenant.",
    "ray": 'For `replicas = "ray"`.',
    "metrics": "The metrics port.",
    "tracing": "OpenTelemetry traces.",
    "log": "The log, on standard error.",
}

_AT_LEAST_1 = Number(1)

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "",
        "tenants_file",
        Text(path=True),
        "",
        "a TOML file of [[tenants]], read again whenever it changes; in place of [[tenants]] here",
    ),
    Setting(
        "server",
        "address",
        Text(),
        "127.0.0.1:50051",
        "host:port to listen on; port 0 takes a free one",
    ),
    Setting(
        "server",
        "health_address",
        Text(),
        "",
        "host:port of a plaintext listener for grpc.health.v1 alone, for probes where TLS is on",
    ),
    Setting(
        "server",
        "public_without_credentials",
        Text(),
        "",
        f'say "{PUBLIC_WORDS}" to listen beyond loopback without credentials, or with tokens '
        "but no TLS",
    ),
    Setting("server", "drain_seconds", Number(0), 30, "time for in-flight requests after SIGTERM"),
    Setting(
        "server",
        "max_message_mib",
        Number(1, 1024),
        DEFAULT_MAX_MESSAGE_BYTES >> 20,
        "largest request or reply, MiB",
    ),
    Setting("server", "device", Text(), "auto", "cpu, cuda, cuda:N or auto"),
    Setting(
        "server",
        "dtype",
        Choice(("auto", "float32", "float16", "bfloat16")),
        "auto",
        "what networks compute in; auto is what the device is good at, and its error against "
        "float32 is logged",
    ),
    Setting(
        "server",
        "compile",
        Flag(),
        False,
        "compile networks by torch.compile, for batch sizes of powers of two; takes minutes "
        "before the server is ready",
    ),
    Setting(
        "server",
        "cuda_graphs",
        Flag(),
        False,
        "capture forwards of those batch sizes as CUDA graphs",
    ),
    Setting(
        "server",
        "torch_threads",
        Number(0, auto=True),
        None,
        "CPU threads of one forward; auto leaves one core to the rest, 0 leaves it to torch",
    ),
    Setting(
        "server",
        "evaluation_budget",
        Number(1, auto=True),
        None,
        "evaluations in one microbatch; auto measures it before the server is ready",
    ),
    Setting(
        "server",
        "replicas",
        Choice(("in-process", "ray")),
        "in-process",
        "where the teachers are: one replica of each in this process, or actors of a Ray cluster "
        "(pip install 'carv[ray]')",
    ),
    Setting(
        "tls",
        "certificate",
        Text(path=True),
        "",
        "PEM certificate chain of the server, its own first; turns TLS on",
        "tls_certificate",
    ),
    Setting(
        "tls", "private_key", Text(path=True), "", "PEM key of the certificate", "tls_private_key"
    ),
    Setting(
        "tls",
        "client_ca",
        Text(path=True),
        "",
        "PEM certificates of the authorities that clients' certificates are checked against",
        "tls_client_ca",
    ),
    Setting(
        "tls",
        "require_client_certificate",
        Flag(auto=True),
        None,
        "refuse connections without a client certificate; by default where client_ca is set",
        "tls_require_client_certificate",
    ),
    Setting(
        "tls",
        "reload_seconds",
        Number(0, whole=False, above=True),
        10.0,
        "within this time a change of the files is taken, once they have stood for half of it",
        "tls_reload_seconds",
    ),
    Setting("limits", "max_draws", _AT_LEAST_1, 1024, "K, draws per render"),
    Setting("limits", "max_renders", _AT_LEAST_1, 256, "R, renders per request"),
    Setting("limits", "max_evaluations", _AT_LEAST_1, 16384, "evaluations per request"),
    Setting(
        "limits",
        "max_stream_requests",
        _AT_LEAST_1,
        64,
        "requests in flight on one StreamGradients",
    ),
    Setting(
        "scheduler",
        "max_waiting_evaluations",
        _AT_LEAST_1,
        1 << 16,
        "evaluations that may wait in the queue",
    ),
    Setting(
        "scheduler",
        "hold_percent",
        Number(0, 100),
        75,
        "longest wait of an idle device for requests that are expected, as a share of a launch",
    ),
    Setting(
        "handles", "conditioning_ttl", _AT_LEAST_1, 3600, "seconds a handle outlives its last use"
    ),
    Setting(
        "handles", "max_conditionings", _AT_LEAST_1, 4096, "conditionings kept, over all teachers"
    ),
    Setting(
        "handles",
        "max_conditionings_mib",
        _AT_LEAST_1,
        1024,
        "bytes of conditionings kept, over all teachers, MiB",
    ),
    Setting(
        "handles",
        "latents_ttl",
        _AT_LEAST_1,
        600,
        "seconds that kept latents outlive their last use",
    ),
    Setting("handles", "max_kept_latents", _AT_LEAST_1, 1024, "latents kept for each teacher"),
    Setting(
        "handles",
        "max_kept_latents_mib",
        _AT_LEAST_1,
        256,
        "bytes of latents kept for each teacher, as float32, MiB",
    ),
    Setting(
        "handles",
        "tenant_percent",
        Number(1, 100),
        50,
        "share of each of these bounds that one tenant may fill, where there are tenants",
    ),
    Setting(
        "history",
        "history_draws",
        _AT_LEAST_1,
        512,
        "draws after which an older draw counts 1/e in the adaptive proposal",
    ),
    Setting(
        "history",
        "max_histories",
        _AT_LEAST_1,
        256,
        "histories of past draws kept for each teacher",
    ),
    Setting(
        "ray",
        "address",
        Text(),
        "",
        "host:port of a cluster that this machine is a node of, or auto; without it a cluster of "
        "the server's own, on the loopback interface",
        "ray_address",
    ),
    Setting(
        "ray", "min_replicas", _AT_LEAST_1, 1, "replicas of each teacher; ready means that they are"
    ),
    Setting(
        "ray",
        "max_replicas",
        _AT_LEAST_1,
        None,
        "most replicas of each teacher, as the queue grows; by default min_replicas",
    ),
    Setting(
        "ray",
        "gpus_per_replica",
        Number(0, whole=False, whole_above=1, auto=True),
        None,
        "GPUs, or a fraction of one; auto is 1 where the cluster has any",
    ),
    Setting(
        "ray",
        "cpus_per_replica",
        Number(0, above=True, whole=False),
        1.0,
        "CPUs; threads of a forward on a CPU",
    ),
    Setting(
        "metrics",
        "address",
        Text(),
        "",
        "host:port for Prometheus, probes and the status page, over plain HTTP; port 0 takes a "
        "free one; empty: none",
        "metrics_address",
    ),
    Setting(
        "tracing",
        "endpoint",
        Text(),
        "",
        "OTLP/gRPC collector of traces: host:port or http://host:port in plaintext, "
        "https://host:port by TLS; empty: none",
        "tracing_endpoint",
    ),
    Setting(
        "tracing",
        "sample_ratio",
        Number(0, 1, whole=False),
        1.0,
        "share of the requests without a trace of their caller's that are traced",
        "tracing_sample_ratio",
    ),
    Setting(
        "log",
        "level",
        Choice(("debug", "info", "warning", "error")),
        "info",
        "what the log says",
        "log_level",
    ),
    Setting(
        "log", "format", Choice(("text", "json")), "text", "lines for people or JSON", "log_format"
    ),
)
