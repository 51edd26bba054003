"""The metrics port has no credentials: one that other machines reach is warned of."""

from __future__ import annotations

import logging

import pytest

from carv_server.serve import _announce_metrics


@pytest.mark.parametrize(
    ("address", "warned"),
    [("127.0.0.1:9464", False), ("[::1]:9464", False), ("0.0.0.0:9464", True), ("[::]:1", True)],
)
def test_a_public_metrics_port_is_warned_of(
    caplog: pytest.LogCaptureFixture, address: str, warned: bool
) -> None:
    """Breaks with: no look at the address."""
    with caplog.at_level(logging.INFO, "carv_server"):
        _announce_metrics(address)
    assert f"http://{address}" in caplog.text
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warnings) == warned
    assert all("metrics.address" in record.getMessage() for record in warnings)
