"""A laboratory over the oracle teacher: closed forms, and nearly free evaluations. And what the
peers serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from carv_server.bench.laboratory import Laboratory
from carv_server.bench.peers.workload import Workload, simulated
from carv_server.bench.states import State
from carv_server.replicas.protocol import Conditioning
from carv_server.teachers.analytic import AnalyticTeacher
from tests.support.oracle import EVENT_SHAPE, oracle_mixture, oracle_schedule

PROMPT = "component"


@pytest.fixture(scope="session")
def laboratory() -> Laboratory:
    """Of the mixture; ``PROMPT`` is component 1 and no prompt is component 2."""
    made = Laboratory(AnalyticTeacher(oracle_mixture(), oracle_schedule()), lambda count: None)
    for prompt, label in ((PROMPT, 1), ("", 2)):
        made._conditionings[prompt] = Conditioning(
            f"class-{label}", {"class_label": torch.tensor(label)}
        )
    return made


@pytest.fixture(scope="session")
def state() -> State:
    """Off the manifold of component 1."""
    noise = np.random.default_rng(1).normal(size=EVENT_SHAPE)
    latents = (oracle_mixture().means[1] + 0.8 * noise).astype(np.float32).reshape(-1)
    return State("prompt", "kind", PROMPT, latents)


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    return simulated(tmp_path, (1, 4, 16))
