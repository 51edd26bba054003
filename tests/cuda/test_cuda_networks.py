"""Captured graphs and compiled networks give what eager ones do."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from carv_server.config import ServerConfig
from carv_server.prepare import load_teachers
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.loading import load_in
from carv_server.teachers.buckets import BucketedTeacher
from carv_server.teachers.compiling import Compilable
from carv_server.teachers.graphs import GraphedTeacher
from carv_server.teachers.protocol import Teacher, Tensors
from carv_server.teachers.registry import EMBEDDED, TeacherRegistration
from tests.cuda.device import CUDA, SOURCES, needs_cuda
from tests.replicas.test_forward import assert_equal, conditionings_of
from tests.replicas.works import make, mixed
from tests.support.plain_forward import plain_forward
from tests.teachers.folders import write_stable_diffusion
from tests.teachers.loading import load

pytestmark = needs_cuda

SIZES = (1, 2, 4, 8)


def rows(teacher: Teacher, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, *teacher.description.event_shape, generator=generator).to(CUDA)
    t = torch.randint(0, 1000, (count,), generator=generator).to(CUDA)
    row = teacher.encode(SOURCES["embedded"][0])[seed % 2]
    conditioning = {k: v.to(CUDA).expand(count, *v.shape) for k, v in row.items()}
    return z, t, conditioning


def test_graphs_equal_eager_forwards_whatever_was_replayed_before() -> None:
    eager = load_in(EMBEDDED, CUDA, "float32")
    graphed = BucketedTeacher(GraphedTeacher(eager, SIZES), SIZES)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for seed, count in enumerate((8, 3, 1, 5, 8, 2, 9, 4, 3, 1)):
        given = rows(eager, count, seed)
        kept.append((graphed.predict_noise(*given), eager.predict_noise(*given)))
    for found, expected in kept:  # after the last replay: none has overwritten an answer
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_replica_with_graphs_equals_the_plain_formula(tmp_path: Path) -> None:
    """Captured and tuned as the server does, then replayed under many microbatches at once."""
    folder = write_stable_diffusion(tmp_path, 1)
    stated = TeacherRegistration("teacher", folder)
    config = ServerConfig(
        teachers=(stated,), device="cuda", dtype="float32", cuda_graphs=True, tune=True
    )
    (prepared,) = load_teachers(config).values()
    on_cpu = load(folder)
    works = mixed(on_cpu, conditionings_of(on_cpu, SOURCES["stable diffusion"]))
    expected = [plain_forward(on_cpu, work) for work in works]

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(2) as staging:
            replica = InProcessReplica(
                prepared.teacher, device, prepared.evaluation_budget, staging
            )
            await replica.warm_up(prepared.warm_sizes)
            for _ in range(4):
                found = await asyncio.gather(
                    *(replica.run([work], lambda _: True) for work in works)
                )
                for work, one, plain in zip(works, found, expected, strict=True):
                    (result,) = one.results
                    assert result is not None
                    assert_equal(work, result, plain, 1e-4)

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_a_compiled_network_equals_an_eager_one_in_any_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond torch's own limit of versions too, which it keeps for each thread."""
    folder = TeacherRegistration("teacher", write_stable_diffusion(tmp_path, 1))
    eager, teacher = load_in(folder, CUDA, "float32"), load_in(folder, CUDA, "float32")
    assert isinstance(teacher, Compilable)
    teacher.compile_network()
    conditionings = conditionings_of(eager, SOURCES["stable diffusion"])
    with ThreadPoolExecutor(1) as thread:
        for count in (1, 2, 4):
            work = make(eager, conditionings, count, draws=count)
            z = torch.from_numpy(work.latents).to(CUDA).expand(count, -1, -1, -1).contiguous()
            t = torch.from_numpy(work.timesteps).to(CUDA)
            row = conditionings[0].tensors
            given = z, t, {k: v.to(CUDA).expand(count, *v.shape) for k, v in row.items()}
            found = thread.submit(lambda given=given: teacher.predict_noise(*given)).result()
            expected = eager.predict_noise(*given)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert "limit" not in caplog.text
