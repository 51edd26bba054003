"""What clients have the server keep: bounded in number and bytes, expiring when unused."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["ExpiringStore", "StoreConfig", "StoreCounts", "content_handle"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class StoreConfig:
    """Bounds of a store.

    Attributes:
        max_entries: handles kept; the least recently used goes first.
        max_bytes: bytes kept.
        seconds_to_live: a handle expires this long after its last use.
    """

    max_entries: int = 4096
    max_bytes: int = 1 << 30
    seconds_to_live: float = 3600.0


@dataclass(frozen=True)
class StoreCounts:
    """A store now, and totals since its start.

    Attributes:
        entries, size: kept, in number and bytes; what has expired unseen is among them.
        hits, misses: look-ups.
        expired, evicted: dropped for not being used, and for room.
    """

    entries: int
    size: int
    hits: int
    misses: int
    expired: int
    evicted: int


@dataclass
class _Entry(Generic[V]):
    value: V
    size: int
    expires: float


class ExpiringStore(Generic[K, V]):
    """Values by key; safe to use from several threads.

    Args:
        config: bounds.
        clock: wall-clock seconds, as clients are told them.
    """

    def __init__(self, config: StoreConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self._clock = clock
        self._hits = self._misses = self._expired = self._evicted = 0
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, its life extended; None where there is none or it has expired."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            now = self._clock()
            if entry.expires <= now:
                self._remove(key)
                self._expired += 1
                self._misses += 1
                return None
            self._hits += 1
            entry.expires = now + self.config.seconds_to_live
            self._entries.move_to_end(key)
            return entry.value

    def put(self, key: K, value: V, size: int) -> float:
        """Keep a value of so many bytes; the wall-clock second at which it expires if not used.

        The newest is kept whatever its size.
        """
        with self._lock:
            if key in self._entries:
                self._remove(key)
            now = self._clock()
            # In order of use, hence of expiry.
            while self._entries and next(iter(self._entries.values())).expires <= now:
                self._remove(next(iter(self._entries)))
                self._expired += 1
            expires = now + self.config.seconds_to_live
            self._entries[key] = _Entry(value, size, expires)
            self._bytes += size
            while len(self._entries) > 1 and (
                len(self._entries) > self.config.max_entries or self._bytes > self.config.max_bytes
            ):
                self._remove(next(iter(self._entries)))
                self._evicted += 1
            return expires

    def counts(self) -> StoreCounts:
        with self._lock:
            return StoreCounts(
                len(self._entries),
                self._bytes,
                self._hits,
                self._misses,
                self._expired,
                self._evicted,
            )

    def _remove(self, key: K) -> None:
        self._bytes -= self._entries.pop(key).size


def content_handle(teacher_digest: str, kind: str, *parts: bytes) -> str:
    """``kind-`` and SHA-256 over teacher, kind and parts, cut to 160 bits."""
    content = hashlib.sha256()
    for part in (teacher_digest.encode(), kind.encode(), *parts):
        # Lengths keep neighbouring parts from running into each other.
        content.update(len(part).to_bytes(8, "little"))
        content.update(part)
    return f"{kind}-{content.hexdigest()[:40]}"
