from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.oracle import write_oracle_folder
from tests.support.process import ServerProcess

# Small tensors: a second thread costs more than it brings, above all beside server processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def analytic_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server in its own process with the oracle teacher ``mixture``."""
    folder = write_oracle_folder(tmp_path_factory.mktemp("mixture"))
    with ServerProcess(
        ["--teacher", f"mixture={folder}", "--torch-threads", "1", "--evaluation-budget", "64"]
    ) as server:
        yield server.address
