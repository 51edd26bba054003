"""The image's health probe against live servers."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.repository.import_boundaries import ROOT

STATUS = health_pb2.HealthCheckResponse


def _probe(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "deploy/docker/healthcheck.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


@pytest.fixture
def server() -> Iterator[tuple[str, health.HealthServicer]]:
    instance = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, instance)
    port = instance.add_insecure_port("127.0.0.1:0")
    instance.start()
    yield f"127.0.0.1:{port}", servicer
    instance.stop(None).wait()


def test_serving_is_healthy(server: tuple[str, health.HealthServicer]) -> None:
    assert _probe(server[0]) == (0, "")


def test_draining_is_not(server: tuple[str, health.HealthServicer]) -> None:
    address, servicer = server
    servicer.set("", STATUS.NOT_SERVING)
    assert _probe(address) == (1, f"{address}: NOT_SERVING\n")


def test_an_unknown_service_is_not(server: tuple[str, health.HealthServicer]) -> None:
    code, message = _probe(server[0], "no.such.Service")
    assert code == 1
    assert "NOT_FOUND" in message


def test_nobody_there_is_not() -> None:
    code, message = _probe("127.0.0.1:1")
    assert code == 1
    assert "UNAVAILABLE" in message
