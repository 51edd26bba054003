"""Conditioning handles: content-addressed, bounded, expiring when unused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from carv_server.replicas.protocol import Conditioning
from carv_server.store import ExpiringStore, StoreConfig, StoreCounts, content_handle
from carv_server.teachers.protocol import (
    Classes,
    Prompts,
    RawTensors,
    Source,
    Tensors,
    Unconditional,
)

__all__ = ["ConditioningStore", "blend_handle", "source_handles"]


class ConditioningStore:
    """Handles of all teachers, private to a tenant; safe to use from several threads.

    Args:
        clock: wall-clock seconds, as clients are told them.
    """

    def __init__(self, config: StoreConfig, clock: Callable[[], float]) -> None:
        self.config = config
        # By teacher too: one set of weights under two ids has the same handles.
        self._store = ExpiringStore[tuple[str, str], Conditioning](config, clock)

    def get(self, handle: str, teacher: str, tenant: str = "") -> Conditioning | None:
        """The conditioning, its life extended; None where the handle is unknown, expired, or of
        another teacher or tenant."""
        return self._store.get((teacher, handle), tenant)

    def put(self, handle: str, teacher: str, tensors: Tensors, tenant: str = "") -> float:
        """Keep a conditioning; the wall-clock second at which it expires if not used."""
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        # What replicas keep goes by this name: tenants with the same prompt share nothing there.
        name = f"{tenant}/{handle}" if tenant else handle
        return self._store.put((teacher, handle), Conditioning(name, tensors), size, tenant)

    def counts(self) -> StoreCounts:
        return self._store.counts()


def source_handles(teacher_digest: str, source: Source) -> list[str]:
    """One handle per conditioning of a source: SHA-256 over teacher and content."""
    match source:
        case Prompts(prompts=prompts):
            return [content_handle(teacher_digest, "prompt", p.encode()) for p in prompts]
        case Classes(class_ids=class_ids):
            return [content_handle(teacher_digest, "class", str(c).encode()) for c in class_ids]
        case Unconditional():
            return [content_handle(teacher_digest, "unconditional")]
        case RawTensors(tensors=tensors):
            return [content_handle(teacher_digest, "tensors", *_tensor_bytes(tensors))]


def blend_handle(teacher_digest: str, weights: Mapping[str, float]) -> str:
    """Handle of a convex blend, by the handles blended and their normalised weights."""
    parts = [f"{handle} {weight!r}".encode() for handle, weight in sorted(weights.items())]
    return content_handle(teacher_digest, "blend", *parts)


def _tensor_bytes(tensors: Tensors) -> list[bytes]:
    parts: list[bytes] = []
    for name, tensor in sorted(tensors.items()):
        parts += [name.encode(), str(tuple(tensor.shape)).encode(), tensor.numpy().tobytes()]
    return parts
