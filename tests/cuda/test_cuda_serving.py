"""The whole server on a CUDA device answers as it does on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from carv_client import TeacherClient
from tests.cuda.device import needs_cuda
from tests.support.process import ServerProcess

pytestmark = needs_cuda

_REQUESTS = 24


def answers(arguments: Sequence[str]) -> list[np.ndarray]:
    """Gradients of requests sent from eight threads, of several shapes and guidance scales."""
    with ServerProcess(arguments) as server, TeacherClient(server.address) as client:
        torus = client.create_conditioning("a red torus, side view")
        cube = client.create_conditioning("a blue cube")

        def ask(i: int) -> np.ndarray:
            rng = np.random.default_rng(i)
            estimate = client.estimate_gradient(
                rng.normal(size=(1 + i % 3, 4, 8, 8)).astype(np.float32),
                torus if i % 2 else cube,
                guidance_scale=(7.5, 1.0, 30.0)[i % 3],
                draws=(8, 1, 5, 2)[i % 4],
                seed=i,
                proposal="prior",  # what was learned from others would come in any order
            )
            return np.asarray(estimate.gradient)

        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(ask, range(_REQUESTS)))


@pytest.mark.parametrize("flags", [[], ["--cuda-graphs"]], ids=["eager", "graphs"])
def test_gradients_over_grpc_equal_a_cpus(flags: list[str]) -> None:
    common = ["--dtype", "float32", "--evaluation-budget", "32"]
    on_cuda = answers([*common, "--device", "cuda", *flags])
    on_cpu = answers([*common, "--device", "cpu"])
    for found, expected in zip(on_cuda, on_cpu, strict=True):
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
