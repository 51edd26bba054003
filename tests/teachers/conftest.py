"""Tiny folders, one server process that serves them all, and their references."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from carv_client import TeacherClient
from carv_server.teachers.protocol import Teacher
from tests.support.process import ServerProcess
from tests.teachers.folders import CLASSES, write_ddpm, write_stable_diffusion
from tests.teachers.loading import load
from tests.teachers.reference import ReferenceTeacher


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny forwards are slower on two threads, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Read-only: a test that spoils a folder copies it first (``spoil``)."""
    root = tmp_path_factory.mktemp("teachers")
    return {
        "sd-epsilon": write_stable_diffusion(root / "sd-epsilon", 1),
        "sd-v": write_stable_diffusion(
            root / "sd-v", 2, prediction_type="v_prediction", rescale_betas_zero_snr=True
        ),
        "sd-sample": write_stable_diffusion(root / "sd-sample", 3, prediction_type="sample"),
        "sd-flow": write_stable_diffusion(root / "sd-flow", 4, flow_shift=3.0),
        "ddpm": write_ddpm(root / "ddpm", 5),
        "ddpm-classes": write_ddpm(
            root / "ddpm-classes",
            6,
            embeddings=CLASSES,
            prediction_type="v_prediction",
            beta_schedule="squaredcos_cap_v2",
        ),
        # The null class is stated on the command line.
        "ddpm-null": write_ddpm(
            root / "ddpm-null", 7, embeddings=CLASSES + 1, beta_schedule="sigmoid"
        ),
        "ddpm-variance": write_ddpm(
            root / "ddpm-variance", 8, size=(8, 4), learned_variance=True, prediction_type="sample"
        ),
    }


@pytest.fixture(scope="session")
def client(folders: dict[str, Path]) -> Iterator[TeacherClient]:
    """A client of a ``carv serve`` process with every folder; teacher ids are their names."""
    arguments = ["--torch-threads", "1", "--device", "cpu", "--evaluation-budget", "64"]
    for name, folder in folders.items():
        option = f",null_class={CLASSES}" if name == "ddpm-null" else ""
        arguments += ["--teacher", f"{name}={folder}{option}"]
    with ServerProcess(arguments) as server, TeacherClient(server.address) as client:
        yield client


@pytest.fixture(scope="session")
def reference(folders: dict[str, Path]) -> Callable[[str], ReferenceTeacher]:
    """Reference teacher by name."""

    @cache
    def load_reference(name: str) -> ReferenceTeacher:
        return ReferenceTeacher(folders[name])

    return load_reference


@pytest.fixture
def spoiled(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder by name, to spoil."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def sd_epsilon(folders: dict[str, Path]) -> Teacher:
    return load(folders["sd-epsilon"])
