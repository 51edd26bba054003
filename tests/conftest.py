from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.oracle import write_oracle_folder
from tests.support.process import ServerProcess

# Small tensors: a second thread costs more than it brings, above all beside server processes.
torch.set_num_threads(1)

# Folders whose tests look at the clock beside servers: one worker runs them, one by one.
_ONE_BY_ONE = ("bench", "demo", "lifecycle", "replicas", "server")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of ``make test``, which has two workers: a folder goes to one of them, as a whole."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = nodeid.removeprefix("tests/").split("/")[0]
            return "one by one" if folder in _ONE_BY_ONE else folder

    return ByFolder(config, log)


@pytest.fixture(scope="session")
def analytic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server in its own process with the oracle teacher ``mixture``."""
    folder = write_oracle_folder(tmp_path_factory.mktemp("mixture"))
    with ServerProcess(
        ["--teacher", f"mixture={folder}", "--torch-threads", "1", "--evaluation-budget", "64"]
    ) as server:
        yield server.address
