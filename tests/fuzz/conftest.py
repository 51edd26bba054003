"""A server with low limits, so that no request that it takes costs much."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.fuzz.calls import Fuzzed
from tests.server.wire import create
from tests.support.oracle import write_oracle_folder
from tests.support.process import ServerProcess

LIMITS = {
    "max-draws": 32,
    "max-renders": 4,
    "max-evaluations": 128,
    "max-message-mib": 2,
    "evaluation-budget": 64,
    "torch-threads": 1,
}


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder = write_oracle_folder(tmp_path_factory.mktemp("mixture"))
    limits = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    with (
        ServerProcess(["--teacher", f"mixture={folder}", *limits]) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        handles = create(channel, [0, 1, 2])
        yield Fuzzed(channel, tuple(handles), server)
        assert server.process.poll() is None, "it crashed"
        assert "Traceback" not in server.log
