"""One channel and one blocking client to the shared server process."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from carv_client import TeacherClient


@pytest.fixture(scope="session")
def channel(analytic_server: str) -> Iterator[grpc.Channel]:
    limit = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(analytic_server, options=limit) as opened:
        yield opened


@pytest.fixture(scope="session")
def client(analytic_server: str) -> Iterator[TeacherClient]:
    with TeacherClient(analytic_server) as opened:
        yield opened
