"""A teacher around another: what both have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from carv_server.teachers.protocol import Source, Teacher, TeacherDescription, Tensors

__all__ = ["WrappedTeacher"]


class WrappedTeacher:
    """Everything but ``predict_noise`` is the inner teacher's."""

    def __init__(self, inner: Teacher) -> None:
        self._inner = inner

    @property
    def description(self) -> TeacherDescription:
        return self._inner.description

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def encode(self, source: Source) -> Sequence[Tensors]:
        return self._inner.encode(source)
