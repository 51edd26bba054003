"""A configuration to a gRPC channel."""

from __future__ import annotations

import json
from typing import Any

import grpc
import grpc.aio

from carv_client._config import ClientConfig

__all__ = ["open_channel"]

# A server that drains says so to health checks, and gets no more calls.
_ROUND_ROBIN: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
}


def open_channel(config: ClientConfig) -> grpc.aio.Channel:
    """Connects when it is first used."""
    reconnect = int(config.retry_initial_seconds * 1000)
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.enable_retries", 0),
        ("grpc.keepalive_time_ms", int(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_seconds * 1000)),
        ("grpc.http2.ping_timeout_ms", int(config.keepalive_timeout_seconds * 1000)),
        # Without these the channel itself would refuse to reconnect for longer than we wait.
        ("grpc.initial_reconnect_backoff_ms", max(reconnect, 100)),
        ("grpc.max_reconnect_backoff_ms", max(int(config.retry_max_seconds * 1000), 100)),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if config.load_balancing == "round_robin":
        options.append(("grpc.service_config", json.dumps(_ROUND_ROBIN)))
    if not config.secure:
        return grpc.aio.insecure_channel(config.address, options=options)
    credentials = grpc.ssl_channel_credentials(
        config.root_certificates, config.private_key, config.certificate_chain
    )
    return grpc.aio.secure_channel(config.address, credentials, options=options)
