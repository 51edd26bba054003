"""Teachers on the CUDA device and their twins on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from carv_server.replicas.loading import load_in
from carv_server.teachers.protocol import Classes, Prompts, Source, Teacher, Unconditional
from carv_server.teachers.registry import EMBEDDED, TeacherRegistration, load_teacher
from tests.support.oracle import write_oracle_folder
from tests.teachers.folders import write_ddpm, write_stable_diffusion

__all__ = ["CUDA", "SOURCES", "needs_cuda", "pair", "registration"]

CUDA = torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SOURCES: dict[str, Sequence[Source]] = {
    "analytic": [Classes((0, 2)), Unconditional()],
    "embedded": [Prompts(("a red torus", "a blue cube")), Unconditional()],
    "stable diffusion": [Prompts(("a red cube", "b")), Unconditional()],
    "ddpm": [Classes((0, 3, 4))],
}


def registration(family: str, folder: Path) -> TeacherRegistration:
    match family:
        case "analytic":
            written = write_oracle_folder(folder)
        case "stable diffusion":
            written = write_stable_diffusion(folder, 1, prediction_type="v_prediction")
        case "ddpm":
            written = write_ddpm(folder, 2, embeddings=5, size=(8, 4))
        case _:
            return EMBEDDED
    return TeacherRegistration("teacher", written)


def pair(family: str, folder: Path) -> tuple[Teacher, Teacher]:
    """On the CUDA device as the server loads it, and on the CPU."""
    stated = registration(family, folder)
    on_cpu = load_teacher(stated, device=torch.device("cpu"), dtype=torch.float32)
    return load_in(stated, CUDA, "float32"), on_cpu
