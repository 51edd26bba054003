"""Fixed batch sizes around a teacher: what compiled networks and captured graphs need."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch

from carv_server.teachers.protocol import Teacher, Tensors
from carv_server.teachers.wrapped import WrappedTeacher

__all__ = ["BucketedTeacher", "bucket_sizes"]


def bucket_sizes(most: int, *, half_steps: bool = False) -> list[int]:
    """Powers of two below ``most``, and ``most``; with ``half_steps`` 3/2 of those powers too."""
    sizes = {1 << i for i in range((most - 1).bit_length())}
    if half_steps:
        sizes |= {size + size // 2 for size in sizes}
    return [*sorted(size for size in sizes if size < most), most]


class BucketedTeacher(WrappedTeacher):
    """Pads every forward to the next of a few batch sizes, and cuts the padding off again.

    Rows of a forward do not see each other, so padding changes no answer; and it is no
    evaluation that anyone is charged for. Forwards above the largest size are left alone.

    Args:
        sizes: ascending.
    """

    def __init__(self, inner: Teacher, sizes: Sequence[int]) -> None:
        super().__init__(inner)
        self._sizes = tuple(sizes)

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        rows = len(z_t)
        at = bisect_left(self._sizes, rows)
        missing = self._sizes[at] - rows if at < len(self._sizes) else 0
        if missing == 0:
            return self._inner.predict_noise(z_t, timesteps, conditioning)
        padded = self._inner.predict_noise(
            _padded(z_t, missing),
            _padded(timesteps, missing),
            {name: _padded(tensor, missing) for name, tensor in conditioning.items()},
        )
        return padded[:rows]


def _padded(rows: torch.Tensor, missing: int) -> torch.Tensor:
    """The last row again, so that padding is as harmless as what it pads."""
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
