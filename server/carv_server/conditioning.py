"""Conditioning handles: content-addressed, bounded, expiring when unused."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from carv_server.replicas.protocol import Conditioning
from carv_server.teachers.protocol import (
    Classes,
    Prompts,
    RawTensors,
    Source,
    Tensors,
    Unconditional,
)

__all__ = ["ConditioningStore", "StoreConfig", "blend_handle", "source_handles"]


@dataclass(frozen=True)
class StoreConfig:
    """Bounds of the handle cache.

    Attributes:
        max_entries: handles kept; the least recently used goes first.
        max_bytes: bytes of conditioning kept.
        seconds_to_live: a handle expires this long after its last use.
    """

    max_entries: int = 4096
    max_bytes: int = 1 << 30
    seconds_to_live: float = 3600.0


@dataclass
class _Entry:
    conditioning: Conditioning
    size: int
    expires: float


class ConditioningStore:
    """Handles of all teachers; safe to use from several threads.

    Args:
        clock: wall-clock seconds, as clients are told them.
    """

    def __init__(self, config: StoreConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        # By teacher too: one set of weights under two ids has the same handles.
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, handle: str, teacher: str) -> Conditioning | None:
        """The conditioning, its life extended; None where the handle is unknown, expired or of
        another teacher."""
        with self._lock:
            key = (teacher, handle)
            entry = self._entries.get(key)
            if entry is None:
                return None
            now = self._clock()
            if entry.expires <= now:
                self._remove(key)
                return None
            entry.expires = now + self._config.seconds_to_live
            self._entries.move_to_end(key)
            return entry.conditioning

    def put(self, handle: str, teacher: str, tensors: Tensors) -> float:
        """Keep a conditioning; the wall-clock second at which it expires if not used."""
        with self._lock:
            key = (teacher, handle)
            if key in self._entries:
                self._remove(key)
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            expires = self._clock() + self._config.seconds_to_live
            self._entries[key] = _Entry(Conditioning(handle, tensors), size, expires)
            self._bytes += size
            while len(self._entries) > 1 and (
                len(self._entries) > self._config.max_entries
                or self._bytes > self._config.max_bytes
            ):
                self._remove(next(iter(self._entries)))
            return expires

    def _remove(self, key: tuple[str, str]) -> None:
        self._bytes -= self._entries.pop(key).size


def source_handles(teacher_digest: str, source: Source) -> list[str]:
    """One handle per conditioning of a source: SHA-256 over teacher and content."""
    match source:
        case Prompts(prompts=prompts):
            return [_handle(teacher_digest, "prompt", p.encode()) for p in prompts]
        case Classes(class_ids=class_ids):
            return [_handle(teacher_digest, "class", str(c).encode()) for c in class_ids]
        case Unconditional():
            return [_handle(teacher_digest, "unconditional")]
        case RawTensors(tensors=tensors):
            return [_handle(teacher_digest, "tensors", *_tensor_bytes(tensors))]


def blend_handle(teacher_digest: str, weights: Mapping[str, float]) -> str:
    """Handle of a convex blend, by the handles blended and their normalised weights."""
    parts = [f"{handle} {weight!r}".encode() for handle, weight in sorted(weights.items())]
    return _handle(teacher_digest, "blend", *parts)


def _tensor_bytes(tensors: Tensors) -> list[bytes]:
    parts: list[bytes] = []
    for name, tensor in sorted(tensors.items()):
        parts += [name.encode(), str(tuple(tensor.shape)).encode(), tensor.numpy().tobytes()]
    return parts


def _handle(teacher_digest: str, kind: str, *parts: bytes) -> str:
    content = hashlib.sha256()
    for part in (teacher_digest.encode(), kind.encode(), *parts):
        # Lengths keep neighbouring parts from running into each other.
        content.update(len(part).to_bytes(8, "little") + part)
    return f"{kind}-{content.hexdigest()[:40]}"
