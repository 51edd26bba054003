"""The actor's code, called here: what it answers where it cannot simply compute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
import torch

from carv_server import pools
from carv_server.config import ServerConfig
from carv_server.replicas import ray_worker
from carv_server.replicas.forward import evaluate
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.protocol import Branch, WorkResult
from carv_server.replicas.ray_config import RayConfig
from carv_server.replicas.ray_replica import load_packet
from carv_server.replicas.ray_worker import LoadPacket, Worker
from carv_server.replicas.wire import pack_works, unpack_results
from carv_server.replicas.wire_teacher import pack_source, pack_tensors, unpack_description
from carv_server.teachers.analytic import load_analytic
from carv_server.teachers.compiling import missing_compiler
from carv_server.teachers.hashes import weight_digests
from carv_server.teachers.protocol import Classes, Prompts, Unconditional
from carv_server.teachers.registry import TeacherRegistration
from tests.replicas.test_forward import assert_equal, conditionings_of
from tests.replicas.wire_works import conditioning, make
from tests.replicas.works import make as make_for
from tests.server.teachers import FaultyTeacher
from tests.support.oracle import write_oracle_folder
from tests.support.plain_forward import plain_forward
from tests.teachers.folders import write_stable_diffusion
from tests.teachers.loading import load


async def _loaded(
    folder: Path, device: str = "cpu", sha256: Mapping[str, str] = MappingProxyType({})
) -> tuple[Worker, dict[str, Any]]:
    worker = Worker()
    return worker, await worker.load(_packet(folder, device=device, sha256=dict(sha256)))


@dataclass
class Cluster:
    """What a pool asks a cluster before anything is started in it."""

    gpus: float = 1.0
    closed: list[bool] = field(default_factory=list[bool])

    def put(self, array: Any) -> Any:
        raise AssertionError("nothing is sent yet")

    def close(self) -> None:
        self.closed.append(True)


def _packet(folder: Path, **changes: Any) -> LoadPacket:
    packet = LoadPacket(
        teacher="mixture",
        folder=str(folder),
        null_class=None,
        sha256={},
        device="cpu",
        dtype="float32",
        threads=1,
        evaluation_budget=64,
        compile=False,
        cuda_graphs=False,
        warm_up=True,
    )
    return cast(LoadPacket, packet | changes)


def _sent(*labels: int) -> dict[str, Any]:
    return {c.handle: pack_tensors(c.tensors) for c in map(conditioning, labels)}


def test_conditionings_are_asked_for_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker, loaded = await _loaded(write_oracle_folder(tmp_path))
        teacher = load_analytic(tmp_path, torch.device("cpu"))
        assert unpack_description(loaded["description"]).digest == teacher.description.digest
        work = make(1, branches=[Branch([conditioning(0)]), Branch([conditioning(1)])])
        packed = pack_works([work])
        arrays = packed.latents
        assert await worker.run(packed.packet, {}, *arrays) == {"missing": ["class-0", "class-1"]}
        assert await worker.run(packed.packet, _sent(1), *arrays) == {"missing": ["class-0"]}
        await worker.run(packed.packet, _sent(0), *arrays)
        reply = await worker.run(packed.packet, {}, *arrays)
        (found,) = unpack_results(reply["result"]).results
        (expected,) = evaluate(teacher, [work])
        assert found is not None and found.reduction is not None and expected.reduction is not None
        assert found.reduction.moments.keys() == expected.reduction.moments.keys()
        for key, moments in expected.reduction.moments.items():
            assert torch.equal(found.reduction.moments[key].mean, moments.mean)

    asyncio.run(scenario())


def test_the_least_recently_used_conditioning_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_worker, "_MAX_CONDITIONINGS", 2)

    async def scenario() -> None:
        worker, _ = await _loaded(write_oracle_folder(tmp_path))

        async def run(label: int, *sent: int) -> dict[str, Any]:
            packed = pack_works([make(1, branches=[Branch([conditioning(label)])])])
            return await worker.run(packed.packet, _sent(*sent), packed.latents[0])

        for label in (0, 1):
            assert "result" in await run(label, label)
        assert "result" in await run(0)
        assert "result" in await run(2, 2)
        assert "result" in await run(0)
        assert await run(1) == {"missing": ["class-1"]}

    asyncio.run(scenario())


def test_a_forward_that_raises_crosses_as_text(tmp_path: Path) -> None:
    async def scenario() -> dict[str, Any]:
        worker, _ = await _loaded(write_oracle_folder(tmp_path))
        faulty = FaultyTeacher(nan_at=-1, raise_at=500)
        worker._replica = InProcessReplica(faulty, worker._thread)
        work = make(1, renders=1, draws=1)
        work.timesteps[:] = 500
        packed = pack_works([work])
        return await worker.run(packed.packet, _sent(0), packed.latents[0])

    kinds, message, trace = asyncio.run(scenario())["raised"]
    assert kinds[0] == "MemoryError" and "Exception" in kinds
    assert message == "out of device memory"
    assert "predict_noise" in trace


def test_a_source_that_does_not_fit_crosses_with_all_its_faults(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker, _ = await _loaded(write_oracle_folder(tmp_path))
        rows = (await worker.encode(*pack_source(Classes((2, 0)))))["rows"]
        assert [int(row["class_label"][1]) for row in rows] == [2, 0]
        ((field, message),) = (await worker.encode(*pack_source(Prompts(("x",)))))["faults"]
        assert field and message

    asyncio.run(scenario())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    _, reply = asyncio.run(_loaded(write_oracle_folder(tmp_path), "cuda"))
    assert "cuda" in reply["refused"]


def test_graphs_without_a_cuda_device_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    reply = asyncio.run(Worker().load(_packet(tmp_path / "nothing", cuda_graphs=True)))
    assert "--cuda-graphs needs a CUDA device; this teacher goes to cpu" in reply["refused"]


@pytest.mark.parametrize("asked", ["compile", "cuda_graphs", ""])
def test_a_worker_is_told_what_the_server_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """From the configuration to the packet. Breaks with: one of the two taken for the other."""
    monkeypatch.setattr(pools, "open_cluster", lambda *given: Cluster())
    config = ServerConfig(
        teachers=(TeacherRegistration("mixture", tmp_path, sha256={"a": "b"}),),
        ray=RayConfig(cpus_per_replica=2.0),
        dtype="bfloat16",
        tune=asked == "",
        compile=asked == "compile",
        cuda_graphs=asked == "cuda_graphs",
    )
    with pools.ray_pools(config) as made:
        packet = load_packet(made["mixture"]._settings)
    assert packet == LoadPacket(
        teacher="mixture",
        folder=str(tmp_path),
        null_class=None,
        sha256={"a": "b"},
        device="auto",
        dtype="bfloat16",
        threads=2,
        evaluation_budget=None if asked == "" else config.scheduler.evaluation_budget,
        compile=asked == "compile",
        cuda_graphs=asked == "cuda_graphs",
        warm_up=True,
    )


def test_graphs_without_a_gpu_in_the_cluster_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    cluster = Cluster(gpus=0.0, closed=closed)
    monkeypatch.setattr(pools, "open_cluster", lambda *given: cluster)
    config = ServerConfig(ray=RayConfig(), cuda_graphs=True)
    with pytest.raises(ValueError, match="needs a CUDA device"), pools.ray_pools(config):
        raise AssertionError("it was started")
    assert closed == [True]


def test_what_a_worker_logs_crosses(tmp_path: Path) -> None:
    """Breaks with: a log that is in a file of Ray's alone."""
    packet = _packet(write_oracle_folder(tmp_path), compile=True)
    reply = asyncio.run(Worker().load(packet))
    assert (logging.INFO, "teacher mixture has no network to compile") in reply["said"]


def test_what_compiling_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    folder = write_stable_diffusion(tmp_path, 1)
    reply = asyncio.run(Worker().load(_packet(folder, compile=True)))
    assert "--compile needs a C++ compiler" in reply["refused"]


def test_a_budget_that_is_not_stated_is_measured_and_its_sizes_run_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a worker that warms up sizes of its own choice."""
    warmed: list[Sequence[int]] = []

    async def note(_: InProcessReplica, sizes: Sequence[int]) -> None:
        warmed.append(sizes)

    monkeypatch.setattr(InProcessReplica, "warm_up", note)
    packet = _packet(write_oracle_folder(tmp_path), evaluation_budget=None)
    reply = asyncio.run(Worker().load(packet))
    assert reply["evaluation_budget"] in {2**i for i in range(10)}
    assert warmed == [(1, reply["evaluation_budget"])]


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler(torch.device("cpu")) is not None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_a_worker_that_compiles_gives_the_same_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_stable_diffusion(tmp_path, 1)
    plain = load(folder)
    compiled: list[Any] = []
    by_torch = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or by_torch(net))
    conditionings = conditionings_of(plain, [Prompts(("a red cube", "b")), Unconditional()])
    work = make_for(plain, conditionings, 1, draws=4)
    packed = pack_works([work])
    sent = {handle: pack_tensors(c.tensors) for handle, c in packed.conditionings.items()}

    async def scenario() -> WorkResult | None:
        worker = Worker()
        loaded = await worker.load(_packet(folder, compile=True, evaluation_budget=4))
        assert "refused" not in loaded
        reply = await worker.run(packed.packet, sent, *packed.latents)
        return unpack_results(reply["result"]).results[0]

    found = asyncio.run(scenario())
    assert found is not None and len(compiled) == 1
    assert_equal(work, found, plain_forward(plain, work), 1e-4)


def test_a_folder_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    _, reply = asyncio.run(_loaded(tmp_path / "nothing"))
    assert str(tmp_path / "nothing") in reply["refused"]


def test_weights_that_are_not_as_stated_are_refused_and_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a registration that is made again without its digests."""
    folder = write_oracle_folder(tmp_path)
    stated = weight_digests(folder)
    (name,) = stated
    _, reply = asyncio.run(_loaded(folder, sha256=stated))
    assert "description" in reply
    monkeypatch.setattr("carv_server.replicas.loading.load_teacher", None)
    _, reply = asyncio.run(_loaded(folder, sha256={name: "0" * 64}))
    assert set(reply) == {"refused", "pid", "said"}
    assert f"expected sha256 {'0' * 64}, found {stated[name]}" in reply["refused"]
