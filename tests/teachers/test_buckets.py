"""Fixed batch sizes: padding changes no answer; graphs and compilers are asked for, not assumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carv_server.config import ServerConfig
from carv_server.prepare import load_teachers
from carv_server.teachers.buckets import BucketedTeacher, bucket_sizes
from carv_server.teachers.compiling import Compilable, missing_compiler
from carv_server.teachers.graphs import GraphedTeacher
from carv_server.teachers.protocol import Prompts, Teacher, Tensors
from tests.server.teachers import Wrapped, oracle_teacher
from tests.teachers.loading import load


def test_bucket_sizes() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(8) == [1, 2, 4, 8]
    assert bucket_sizes(12) == [1, 2, 4, 8, 12]
    assert bucket_sizes(1, half_steps=True) == [1]
    assert bucket_sizes(20, half_steps=True) == [1, 2, 3, 4, 6, 8, 12, 16, 20]


class Recording(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        self.rows.append(len(z_t))
        return super().predict_noise(z_t, timesteps, conditioning)


@pytest.mark.parametrize(("rows", "seen"), [(1, 1), (3, 4), (8, 8), (9, 12), (13, 13)])
def test_padding_changes_no_answer(rows: int, seen: int) -> None:
    inner = Recording()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, *inner.description.event_shape, generator=generator)
    t = torch.randint(0, 1000, (rows,), generator=generator)
    labels = {"class_label": torch.arange(rows) % 4}
    found = BucketedTeacher(inner, bucket_sizes(12)).predict_noise(z, t, labels)
    assert inner.rows == [seen]
    # Sums over other batch sizes may be ordered otherwise.
    torch.testing.assert_close(found, oracle_teacher().predict_noise(z, t, labels))


def test_graphs_need_cuda() -> None:
    with pytest.raises(ValueError, match="need a CUDA device, and this teacher is on cpu"):
        GraphedTeacher(oracle_teacher(), [1])
    with pytest.raises(ValueError, match="--cuda-graphs needs a CUDA device"):
        load_teachers(ServerConfig(device="cpu", cuda_graphs=True))


def test_compiling_without_a_compiler_says_what_is_missing(
    sd_epsilon: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert isinstance(sd_epsilon, Compilable)
    with pytest.raises(ValueError, match=r"--compile needs a C\+\+ compiler"):
        sd_epsilon.compile_network()


def test_only_compiling_imports_what_it_needs() -> None:
    """Two seconds of every start of a server or a worker."""
    program = (
        "import sys, carv_server.serve, carv_server.prepare, carv_server.replicas.ray_worker\n"
        "print('torch._dynamo' in sys.modules)\n"
        "from carv_server.teachers.compiling import compiled\n"
        "import torch\n"
        "compiled(torch.nn.Linear(1, 1), torch.device('cpu'))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"CXX": sys.executable},  # anything that is there
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler(torch.device("cpu")) is not None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_a_compiled_network_gives_the_same_noise(folders: dict[str, Path]) -> None:
    plain, fast = load(folders["sd-epsilon"]), load(folders["sd-epsilon"])
    assert isinstance(fast, Compilable)
    fast.compile_network()
    (row,) = plain.encode(Prompts(("a red cube",)))
    for rows in (4, 1, 3, 7):
        z = torch.randn(rows, *plain.description.event_shape)
        t = torch.linspace(10, 900, rows).long()
        conditioning = {k: v.expand(rows, *v.shape) for k, v in row.items()}
        found = fast.predict_noise(z, t, conditioning)
        torch.testing.assert_close(
            found, plain.predict_noise(z, t, conditioning), rtol=1e-4, atol=1e-5
        )
