"""A teacher from its registration, in the number format that its device is good at."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from carv_server.replicas.precision import (
    is_faster,
    probe_gradient,
    reduced_dtype,
    relative_error,
)
from carv_server.replicas.row_limit import is_out_of_memory
from carv_server.teachers.compiling import Compilable
from carv_server.teachers.hashes import verify_weights
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registry import TeacherRegistration, load_teacher

__all__ = ["load_in"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


def load_in(registration: TeacherRegistration, device: torch.device, dtype: str) -> Teacher:
    """In a number format by name, or in what the device is good at; with its error measured, where
    float32 fits on the device too.

    Raises:
        TeacherFolderError: the folder cannot be served, or a digest is not as it was stated.
    """
    if registration.sha256:
        verify_weights(registration.folder, registration.sha256)

    def load(dtype: torch.dtype) -> Teacher:
        return load_teacher(registration, device=device, dtype=dtype)

    if device.type == "cuda":
        # Else convolutions in "float32" keep ten bits, and a digest means two things.
        torch.backends.cudnn.allow_tf32 = False
    reduced = reduced_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    if reduced in (None, torch.float32):
        return load(torch.float32)
    exact = _unless_out_of_memory(registration.id, lambda: load(torch.float32))
    if exact is None:
        # Parts of it may lie about in cycles, and would not leave room.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    elif not isinstance(exact, Compilable):
        return exact
    gradient = None if exact is None else _gradient(registration.id, exact)
    if device.type != "cpu":
        exact = None  # never two networks on a device
    teacher = load(reduced)
    if device.type == "cpu" and dtype == "auto" and exact and not is_faster(teacher, exact):
        _log.info("teacher %s: float32, since %s is no faster", registration.id, _name(reduced))
        return exact
    found = None if gradient is None else _gradient(registration.id, teacher)
    if gradient is not None and found is not None:
        _log.info(
            "teacher %s: %s; the gradient of a fixed probe is within %.2g of float32's, relative",
            registration.id,
            _name(reduced),
            relative_error(found, gradient),
        )
    return teacher


def _gradient(teacher_id: str, teacher: Teacher) -> torch.Tensor | None:
    return _unless_out_of_memory(teacher_id, lambda: probe_gradient(teacher))


def _unless_out_of_memory(teacher_id: str, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _log.warning(
            "teacher %s: reduced precision is not compared with float32: out of memory", teacher_id
        )
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
