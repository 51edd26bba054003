"""Settings of metrics, traces and logs. Light: nothing here loads a library."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

__all__ = [
    "LOG_FORMATS",
    "LOG_LEVELS",
    "LogConfig",
    "MetricsConfig",
    "TracingConfig",
    "check_installed",
]

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class MetricsConfig:
    """The plain-HTTP port for operators: /metrics, /status, /livez and /readyz.

    Attributes:
        address: host:port, port 0 takes a free one; "" means no such port. It has no
            credentials and names tenants: not for the outside.

    Raises:
        ValueError: ``address`` is no host:port.
    """

    address: str = ""

    def __post_init__(self) -> None:
        if self.address and _port_of(f"//{self.address}") is None:
            raise ValueError(
                f'{self.address!r} must be host:port, as in 127.0.0.1:9464, or "" for none'
            )


@dataclass(frozen=True)
class TracingConfig:
    """Traces by OTLP over gRPC.

    Attributes:
        endpoint: of a collector, host:port or http://host:port in plaintext, https://host:port
            by TLS; "" means no traces.
        sample_ratio: share of the requests without a trace of their caller's that are traced; a
            caller's own choice always holds.

    Raises:
        ValueError: a value is out of range.
    """

    endpoint: str = ""
    sample_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.endpoint:
            scheme, separator, _ = self.endpoint.partition("://")
            url = self.endpoint if separator else f"//{self.endpoint}"
            if _port_of(url) is None or (separator and scheme not in ("http", "https")):
                # Not what stands before an @, which may be a password.
                raise ValueError(
                    f"{self.endpoint.rpartition('@')[2]!r} must be host:port, "
                    'http://host:port or https://host:port, or "" for no traces'
                )
        if not 0.0 <= self.sample_ratio <= 1.0:
            raise ValueError(
                f"tracing.sample_ratio is {self.sample_ratio}; it must be in 0 .. 1: 0.1 traces a "
                "tenth of the requests"
            )


@dataclass(frozen=True)
class LogConfig:
    """Where to: standard error, always.

    Attributes:
        level: one of ``LOG_LEVELS``; at debug every request has a line.
        format: "text", or "json": one object a line.

    Raises:
        ValueError: a value is none of these.
    """

    level: str = "info"
    format: str = "text"

    def __post_init__(self) -> None:
        if self.level not in LOG_LEVELS:
            raise ValueError(f"log.level is {self.level!r}; it must be one of {LOG_LEVELS}")
        if self.format not in LOG_FORMATS:
            raise ValueError(f"log.format is {self.format!r}; it must be one of {LOG_FORMATS}")


def check_installed(config: TracingConfig) -> None:
    """Raises ValueError where traces are asked for and OpenTelemetry is not there."""
    if config.endpoint and (
        find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None
    ):
        raise ValueError("needs OpenTelemetry, which is not installed: pip install 'carv[tracing]'")


def _port_of(url: str) -> int | None:
    """The port of a URL with a host and a port, and nothing behind them."""
    try:
        parts = urlsplit(url)
        rest = parts.path or parts.query or parts.fragment or parts.username
        return parts.port if parts.hostname and not rest else None
    except ValueError:
        return None
