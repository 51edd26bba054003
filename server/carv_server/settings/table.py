"""The one table of the server's settings: key, variable, flag, type, range, default and text.

The parser of ``carv serve``, the reader of the file, ``carv config show`` and
docs/configuration.md are all made from it.
"""

from __future__ import annotations

from collections.abc import Mapping

from carv_server.settings.kinds import Choice, Number, Text
from carv_server.settings.server_table import PUBLIC_WORDS, SERVER_SETTINGS
from carv_server.settings.setting import Setting

__all__ = ["PUBLIC_WORDS", "SECTIONS", "SETTINGS"]

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
    *SERVER_SETTINGS,
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
        "ray",
        "start_seconds",
        Number(0, above=True, whole=False),
        None,
        "until a replica that has found no place or loaded no teacher is given up; by default 600, "
        "and 3600 where it compiles on a device other than cpu",
        "replica_start_seconds",
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
