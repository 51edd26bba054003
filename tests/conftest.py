from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.oracle import write_oracle_folder
from tests.support.process import ServerProcess

# Small tensors: a second thread costs more than it brings, above all beside server processes.
torch.set_num_threads(1)

# Folders whose tests start servers and look at the clock: one worker runs them, one by one.
_ONE_BY_ONE = {"bench", "demo", "lifecycle", "replicas", "server"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``make test``, which has two workers: each group goes to one of them, as a whole."""
    for item in items:
        folder, file = item.path.parts[-2:]
        group = "servers" if folder in _ONE_BY_ONE else f"{folder}/{file}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def analytic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server in its own process with the oracle teacher ``mixture``."""
    folder = write_oracle_folder(tmp_path_factory.mktemp("mixture"))
    with ServerProcess(
        ["--teacher", f"mixture={folder}", "--torch-threads", "1", "--evaluation-budget", "64"]
    ) as server:
        yield server.address
