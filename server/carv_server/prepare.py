"""From registrations to teachers ready to serve: number format, compilation, microbatch size."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from carv_server.config import ServerConfig
from carv_server.host import forward_threads, keep_freed_memory
from carv_server.replicas.loading import load_in
from carv_server.replicas.tuning import tune_rows
from carv_server.teachers.buckets import BucketedTeacher, bucket_sizes
from carv_server.teachers.compiling import Compilable
from carv_server.teachers.graphs import GraphedTeacher
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registry import TeacherRegistration

__all__ = ["PreparedTeacher", "as_prepared", "load_teachers"]

_log = logging.getLogger(__name__)

_POWERS = tuple(1 << i for i in range(10))
_SMALL_ROWS, _MANY_ROWS = 16, 64


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher and how it is to be fed.

    Attributes:
        evaluation_budget: evaluations in one microbatch.
        warm_sizes: batch sizes to run before anyone waits for them.
    """

    teacher: Teacher
    evaluation_budget: int
    warm_sizes: tuple[int, ...]


def load_teachers(config: ServerConfig) -> dict[str, PreparedTeacher]:
    """Load every registered teacher onto the configured device, by id.

    Raises:
        TeacherFolderError: a folder cannot be served.
        ValueError: an id is registered twice, the device is not there, or it lacks what
            ``compile`` or ``cuda_graphs`` need.
    """
    devices = {each.id: _device(each.device or config.device) for each in config.teachers}
    for device in devices.values():
        if config.cuda_graphs and device.type != "cuda":
            raise ValueError(f"--cuda-graphs needs a CUDA device; this server is on {device}")
    _use_threads(config.torch_threads)
    keep_freed_memory()
    teachers: dict[str, PreparedTeacher] = {}
    for registration in config.teachers:
        if registration.id in teachers:
            raise ValueError(f"teacher id {registration.id!r} is registered twice")
        dtype = registration.dtype or config.dtype
        teacher = _load(registration, devices[registration.id], dtype)
        teachers[registration.id] = _prepared(registration.id, teacher, config)
    return teachers


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


def _prepared(teacher_id: str, teacher: Teacher, config: ServerConfig) -> PreparedTeacher:
    on_cuda = teacher.device.type == "cuda"
    if not on_cuda:
        _compile(teacher_id, teacher, config)
    budget = config.scheduler.evaluation_budget
    if config.tune:
        started = time.perf_counter()
        # Small networks take as long as their launches, unless they are graphs.
        graphed = GraphedTeacher(teacher, _POWERS) if config.cuda_graphs else teacher
        tuning = tune_rows(graphed)
        budget = tuning.rows
        _log.info(
            "teacher %s: microbatches of %d evaluations; measured (rows: evaluations/s) %s, until "
            "%s, in %.1f s",
            teacher_id,
            budget,
            ", ".join(f"{rows}: {rate:.0f}" for rows, rate in tuning.rates.items()),
            tuning.ended_by,
            time.perf_counter() - started,
        )
    if on_cuda:
        # For each size anew, at a minute each: not for sizes that are only tried.
        _compile(teacher_id, teacher, config)
    if not (config.compile or config.cuda_graphs):
        return PreparedTeacher(teacher, budget, _eager_sizes(budget, teacher.device))
    # Half steps pad less; but a network takes a minute to compile for each.
    sizes = bucket_sizes(budget, half_steps=on_cuda and not config.compile)
    if not on_cuda:
        # Compiled for any size, and padding would cost what the rows cost.
        return PreparedTeacher(teacher, budget, tuple(sizes))
    if config.cuda_graphs:
        teacher = GraphedTeacher(teacher, sizes)
    return PreparedTeacher(BucketedTeacher(teacher, sizes), budget, tuple(sizes))


def _compile(teacher_id: str, teacher: Teacher, config: ServerConfig) -> None:
    if not config.compile:
        return
    if isinstance(teacher, Compilable):
        teacher.compile_network()
    else:
        _log.info("teacher %s has no network to compile", teacher_id)


def as_prepared(teacher: PreparedTeacher | Teacher, config: ServerConfig) -> PreparedTeacher:
    """A teacher taken as it is, in microbatches of the scheduler's own size."""
    if isinstance(teacher, PreparedTeacher):
        return teacher
    budget = config.scheduler.evaluation_budget
    return PreparedTeacher(teacher, budget, _eager_sizes(budget, teacher.device))


def _eager_sizes(budget: int, device: torch.device) -> tuple[int, ...]:
    """On a CPU forwards of any size are alike, but for the memory of the largest and the first of
    all. On a CUDA device the first of each size takes tenths of a second, while its libraries plan:
    all small sizes, and larger ones as far as requests of several draws make them."""
    if device.type != "cuda":
        return (1, budget) if budget > 1 else (1,)
    sizes = {*range(1, _SMALL_ROWS), *range(_SMALL_ROWS, _MANY_ROWS + 1, 4)}
    return (*sorted(size for size in sizes if size < budget), budget)


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
