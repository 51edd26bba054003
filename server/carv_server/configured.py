"""Checked settings to the configuration of the parts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from carv_server.config import ServerConfig
from carv_server.history import HistoryConfig
from carv_server.replicas.autoscale import ScalePolicy
from carv_server.replicas.ray_config import RayConfig
from carv_server.request import RequestLimits
from carv_server.scheduling.config import SchedulerConfig
from carv_server.settings.observability import MetricsConfig, TracingConfig
from carv_server.settings.result import Settings
from carv_server.store import StoreConfig
from carv_server.tenants.tenancy import TenancyConfig
from carv_server.tls import TlsConfig

__all__ = ["server_config"]

_MIB = 1 << 20
# Where TLS is on: certificates are looked at only when a connection is made.
_TLS_AGE_MINUTES = 30.0
# Of a Ray replica; compiling for a CUDA device takes a minute for each batch size.
_START_SECONDS, _COMPILED_START_SECONDS = 600.0, 3600.0


def server_config(settings: Settings) -> ServerConfig:
    """The server's configuration."""
    budget = cast("int | None", settings.values["server.evaluation_budget"])
    handles = _own_share(settings)
    return ServerConfig(
        address=settings.text("server.address"),
        health_address=settings.text("server.health_address"),
        teachers=settings.teachers,
        device=settings.text("server.device"),
        dtype=settings.text("server.dtype"),
        compile=settings.flag("server.compile"),
        cuda_graphs=settings.flag("server.cuda_graphs"),
        tune=budget is None,
        torch_threads=cast("int | None", settings.values["server.torch_threads"]),
        max_message_bytes=settings.integer("server.max_message_mib") * _MIB,
        drain_seconds=settings.number("server.drain_seconds"),
        connection_age_seconds=_connection_age(settings),
        connection_grace_seconds=max(
            settings.number("server.connection_grace_seconds"),
            settings.number("server.drain_seconds"),
        ),
        ray=_ray(settings) if settings.text("server.replicas") == "ray" else None,
        tls=_tls(settings),
        metrics=MetricsConfig(settings.text("metrics.address")),
        tracing=TracingConfig(
            settings.text("tracing.endpoint"), settings.number("tracing.sample_ratio")
        ),
        tenancy=_tenancy(settings),
        scheduler=SchedulerConfig(
            evaluation_budget=budget or SchedulerConfig.evaluation_budget,
            max_waiting_evaluations=settings.integer("scheduler.max_waiting_evaluations"),
            hold_fraction=settings.number("scheduler.hold_percent") / 100,
        ),
        store=StoreConfig(
            max_entries=settings.integer("handles.max_conditionings"),
            max_bytes=settings.integer("handles.max_conditionings_mib") * _MIB,
            seconds_to_live=settings.number("handles.conditioning_ttl"),
            owner_share=handles,
        ),
        latents=StoreConfig(
            max_entries=settings.integer("handles.max_kept_latents"),
            max_bytes=settings.integer("handles.max_kept_latents_mib") * _MIB,
            seconds_to_live=settings.number("handles.latents_ttl"),
            owner_share=handles,
        ),
        history=HistoryConfig(
            memory_draws=settings.number("history.history_draws"),
            max_histories=settings.integer("history.max_histories"),
        ),
        limits=RequestLimits(
            max_draws=settings.integer("limits.max_draws"),
            max_renders=settings.integer("limits.max_renders"),
            max_evaluations=settings.integer("limits.max_evaluations"),
            max_stream_requests=settings.integer("limits.max_stream_requests"),
        ),
    )


def _connection_age(settings: Settings) -> float:
    minutes = cast("float | None", settings.values["server.connection_age_minutes"])
    if minutes is None:
        minutes = _TLS_AGE_MINUTES if settings.text("tls.certificate") else 0.0
    return 60.0 * minutes


def _own_share(settings: Settings) -> float:
    return 1.0 if settings.tenants is None else settings.number("handles.tenant_percent") / 100


def _ray(settings: Settings) -> RayConfig:
    least = settings.integer("ray.min_replicas")
    most = cast("int | None", settings.values["ray.max_replicas"]) or least
    return RayConfig(
        address=settings.text("ray.address"),
        scale=ScalePolicy(min_replicas=least, max_replicas=most),
        gpus_per_replica=cast("float | None", settings.values["ray.gpus_per_replica"]),
        cpus_per_replica=settings.number("ray.cpus_per_replica"),
        start_seconds=_start_seconds(settings),
    )


def _start_seconds(settings: Settings) -> float:
    if settings.values["ray.start_seconds"] is not None:
        return settings.number("ray.start_seconds")
    for_a_gpu = settings.text("server.device") != "cpu"
    compiles = settings.flag("server.compile") and for_a_gpu
    return _COMPILED_START_SECONDS if compiles else _START_SECONDS


def _tls(settings: Settings) -> TlsConfig | None:
    if not settings.text("tls.certificate"):
        return None
    authority = settings.text("tls.client_ca")
    return TlsConfig(
        certificate=Path(settings.text("tls.certificate")),
        private_key=Path(settings.text("tls.private_key")),
        client_ca=Path(authority) if authority else None,
        require_client_certificate=settings.requires_client_certificate,
        reload_seconds=settings.number("tls.reload_seconds"),
    )


def _tenancy(settings: Settings) -> TenancyConfig | None:
    if settings.tenants is None:
        return None
    file = settings.text("tenants_file")
    return TenancyConfig(settings.tenants, Path(file) if file else None)
