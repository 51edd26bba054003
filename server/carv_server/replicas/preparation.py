"""How a loaded teacher is made ready: its network compiled, its forwards captured, the size of its
microbatches, and the sizes to run before anyone waits for them. The same here and in an actor."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from carv_server.replicas.tuning import tune_rows
from carv_server.teachers.buckets import BucketedTeacher, bucket_sizes
from carv_server.teachers.compiling import Compilable
from carv_server.teachers.graphs import GraphedTeacher
from carv_server.teachers.protocol import Teacher

__all__ = ["Preparation", "PreparedTeacher", "eager", "prepare"]

_log = logging.getLogger(__name__)

_POWERS = tuple(1 << i for i in range(10))
_SMALL_ROWS, _MANY_ROWS = 16, 64


@dataclass(frozen=True)
class Preparation:
    """What is done to a teacher.

    Attributes:
        evaluation_budget: evaluations in one microbatch; None: as measured.
        compile: its network by torch.compile, for a few fixed batch sizes.
        cuda_graphs: its forwards of those batch sizes captured.
    """

    evaluation_budget: int | None
    compile: bool = False
    cuda_graphs: bool = False

    def check(self, device: torch.device) -> None:
        """Before a teacher is loaded there.

        Raises:
            ValueError: the device has no graphs.
        """
        if self.cuda_graphs and device.type != "cuda":
            raise ValueError(f"--cuda-graphs needs a CUDA device; this teacher goes to {device}")


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


def prepare(teacher_id: str, teacher: Teacher, wanted: Preparation) -> PreparedTeacher:
    """Compile, measure and capture, as wanted.

    Raises:
        ValueError: the device lacks what compiling or capturing needs.
    """
    on_cuda = teacher.device.type == "cuda"
    if not on_cuda:
        _compile(teacher_id, teacher, wanted)
    budget = wanted.evaluation_budget
    if budget is None:
        started = time.perf_counter()
        # Small networks take as long as their launches, unless they are graphs.
        tuning = tune_rows(GraphedTeacher(teacher, _POWERS) if wanted.cuda_graphs else teacher)
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
        _compile(teacher_id, teacher, wanted)
    if not (wanted.compile or wanted.cuda_graphs):
        return eager(teacher, budget)
    # Half steps pad less; but a network takes a minute to compile for each.
    sizes = bucket_sizes(budget, half_steps=on_cuda and not wanted.compile)
    if not on_cuda:
        # Compiled for any size, and padding would cost what the rows cost.
        return PreparedTeacher(teacher, budget, tuple(sizes))
    if wanted.cuda_graphs:
        teacher = GraphedTeacher(teacher, sizes)
    return PreparedTeacher(BucketedTeacher(teacher, sizes), budget, tuple(sizes))


def eager(teacher: Teacher, budget: int) -> PreparedTeacher:
    """A teacher as it is. On a CPU forwards of any size are alike, but for the memory of the
    largest and the first of all. On a CUDA device the first of each size takes tenths of a second,
    while its libraries plan: all small sizes, and larger ones as far as requests of several draws
    make them."""
    if teacher.device.type != "cuda":
        return PreparedTeacher(teacher, budget, (1, budget) if budget > 1 else (1,))
    sizes = {*range(1, _SMALL_ROWS), *range(_SMALL_ROWS, _MANY_ROWS + 1, 4)}
    return PreparedTeacher(
        teacher, budget, (*sorted(size for size in sizes if size < budget), budget)
    )


def _compile(teacher_id: str, teacher: Teacher, wanted: Preparation) -> None:
    if not wanted.compile:
        return
    if isinstance(teacher, Compilable):
        teacher.compile_network()
    else:
        _log.info("teacher %s has no network to compile", teacher_id)
