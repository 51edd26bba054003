"""From registrations to teachers ready to serve in this process."""

from __future__ import annotations

import logging
import time

import torch

from carv_server.config import ServerConfig
from carv_server.host import forward_threads, keep_freed_memory
from carv_server.replicas.loading import load_in
from carv_server.replicas.preparation import Preparation, PreparedTeacher, eager, prepare
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registry import TeacherRegistration

__all__ = ["as_prepared", "load_teachers", "preparation"]

_log = logging.getLogger(__name__)


def load_teachers(config: ServerConfig) -> dict[str, PreparedTeacher]:
    """Load every registered teacher onto the configured device, by id.

    Raises:
        TeacherFolderError: a folder cannot be served.
        ValueError: an id is registered twice, the device is not there, or it lacks what
            ``compile`` or ``cuda_graphs`` need.
    """
    wanted = preparation(config)
    devices = {each.id: _device(each.device or config.device) for each in config.teachers}
    for device in devices.values():
        wanted.check(device)
    _use_threads(config.torch_threads)
    keep_freed_memory()
    teachers: dict[str, PreparedTeacher] = {}
    for registration in config.teachers:
        if registration.id in teachers:
            raise ValueError(f"teacher id {registration.id!r} is registered twice")
        dtype = registration.dtype or config.dtype
        teacher = _load(registration, devices[registration.id], dtype)
        teachers[registration.id] = prepare(registration.id, teacher, wanted)
    return teachers


def preparation(config: ServerConfig) -> Preparation:
    """What the configuration asks to be done to every teacher."""
    budget = None if config.tune else config.scheduler.evaluation_budget
    return Preparation(budget, config.compile, config.cuda_graphs)


def as_prepared(teacher: PreparedTeacher | Teacher, config: ServerConfig) -> PreparedTeacher:
    """A teacher taken as it is, in microbatches of the scheduler's own size."""
    if isinstance(teacher, PreparedTeacher):
        return teacher
    return eager(teacher, config.scheduler.evaluation_budget)


def _load(registration: TeacherRegistration, device: torch.device, dtype: str) -> Teacher:
    started = time.perf_counter()
    teacher = load_in(registration, device, dtype)
    _log.info(
        "teacher %s: %s %s on %s, digest %s, %.1f s",
        registration.id,
        teacher.description.family,
        list(teacher.description.event_shape),
        device,
        teacher.description.digest[:12],
        time.perf_counter() - started,
    )
    return teacher


def _use_threads(threads: int | None) -> None:
    if threads is None:
        threads = forward_threads()
    if threads:
        torch.set_num_threads(threads)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name}: this torch sees no CUDA device")
    return device
