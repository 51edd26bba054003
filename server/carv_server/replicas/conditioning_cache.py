"""Conditioning on the device: each handle is copied there once, not once a microbatch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch

from carv_server.replicas.protocol import Conditioning
from carv_server.teachers.protocol import Tensors

__all__ = ["ConditioningCache"]

_MAX_BYTES = 256 << 20


class ConditioningCache:
    """The conditionings used last, by handle, which stands for one content. Safe to use from
    several threads, but on CUDA from one stream.

    Args:
        max_bytes: of the device's memory; one conditioning above it is kept until the next.
    """

    def __init__(self, device: torch.device, max_bytes: int = _MAX_BYTES) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._rows: OrderedDict[str, Tensors] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def table(self, conditionings: Sequence[Conditioning]) -> Tensors:
        """One row for each, on the device: [len(conditionings), *row shape] by name."""
        with self._lock:
            rows = [self._row(conditioning) for conditioning in conditionings]
            self._evict()
        if len(rows) == 1:
            return {name: tensor.unsqueeze(0) for name, tensor in rows[0].items()}
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, conditioning: Conditioning) -> Tensors:
        row = self._rows.get(conditioning.handle)
        if row is None:
            row = {name: self._sent(tensor) for name, tensor in conditioning.tensors.items()}
            self._rows[conditioning.handle] = row
            self._bytes += _size(row)
        self._rows.move_to_end(conditioning.handle)
        return row

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda":
            # From pageable memory the copy would hold up this thread behind the forward ahead.
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _evict(self) -> None:
        while self._bytes > self._max_bytes and len(self._rows) > 1:
            _, row = self._rows.popitem(last=False)
            self._bytes -= _size(row)


def _size(row: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in row.values())
