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
        owner_share: of both bounds, for one owner; above 0, at most 1.
    """

    max_entries: int = 4096
    max_bytes: int = 1 << 30
    seconds_to_live: float = 3600.0
    owner_share: float = 1.0


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


class _Shelf(Generic[K, V]):
    """What one owner has, in order of use, hence of expiry."""

    __slots__ = ("bytes", "entries")

    def __init__(self) -> None:
        self.entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self.bytes = 0

    def remove(self, key: K) -> None:
        self.bytes -= self.entries.pop(key).size

    def remove_oldest(self) -> None:
        self.remove(next(iter(self.entries)))

    def remove_expired(self, now: float) -> int:
        """How many there were."""
        before = len(self.entries)
        while self.entries and next(iter(self.entries.values())).expires <= now:
            self.remove_oldest()
        return before - len(self.entries)


class ExpiringStore(Generic[K, V]):
    """Values by owner and key; safe to use from several threads.

    Owners share nothing but the bounds: what one has is not there for another, and where room is
    needed the owner that has most of it gives way.

    Args:
        config: bounds.
        clock: wall-clock seconds, as clients are told them.
    """

    def __init__(self, config: StoreConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self._clock = clock
        self._shelves: dict[str, _Shelf[K, V]] = {}
        self._hits = self._misses = self._expired = self._evicted = 0
        self._lock = threading.Lock()

    def get(self, key: K, owner: str = "") -> V | None:
        """The value, its life extended; None where the owner has none or it has expired."""
        with self._lock:
            shelf = self._shelves.get(owner)
            entry = None if shelf is None else shelf.entries.get(key)
            if shelf is None or entry is None:
                self._misses += 1
                return None
            now = self._clock()
            if entry.expires <= now:
                shelf.remove(key)
                self._expired += 1
                self._misses += 1
                return None
            self._hits += 1
            entry.expires = now + self.config.seconds_to_live
            shelf.entries.move_to_end(key)
            return entry.value

    def put(self, key: K, value: V, size: int, owner: str = "") -> float:
        """Keep a value of so many bytes; the wall-clock second at which it expires if not used.

        The newest is kept whatever its size.
        """
        config = self.config
        with self._lock:
            shelf = self._shelves.setdefault(owner, _Shelf())
            if key in shelf.entries:
                shelf.remove(key)
            now = self._clock()
            for name, other in list(self._shelves.items()):
                self._expired += other.remove_expired(now)
                if not other.entries and other is not shelf:
                    del self._shelves[name]
            expires = now + config.seconds_to_live
            shelf.entries[key] = _Entry(value, size, expires)
            shelf.bytes += size
            share = config.owner_share
            most, most_bytes = max(1, int(share * config.max_entries)), share * config.max_bytes
            while len(shelf.entries) > 1 and (
                len(shelf.entries) > most or shelf.bytes > most_bytes
            ):
                shelf.remove_oldest()
                self._evicted += 1
            self._make_room(shelf)
            return expires

    def _make_room(self, newest: _Shelf[K, V]) -> None:
        """Keep to the bounds on all owners together, and keep the newest value."""
        shelves = self._shelves.values()
        entries = sum(len(shelf.entries) for shelf in shelves)
        size = sum(shelf.bytes for shelf in shelves)
        while entries > self.config.max_entries or size > self.config.max_bytes:
            others = [shelf for shelf in shelves if len(shelf.entries) > (shelf is newest)]
            if not others:
                return
            if size > self.config.max_bytes:
                largest = max(others, key=lambda shelf: shelf.bytes)
            else:
                largest = max(others, key=lambda shelf: len(shelf.entries))
            before = largest.bytes
            largest.remove_oldest()
            self._evicted += 1
            entries, size = entries - 1, size - (before - largest.bytes)

    def counts(self) -> StoreCounts:
        """Of all owners together."""
        with self._lock:
            shelves = self._shelves.values()
            return StoreCounts(
                sum(len(shelf.entries) for shelf in shelves),
                sum(shelf.bytes for shelf in shelves),
                self._hits,
                self._misses,
                self._expired,
                self._evicted,
            )


def content_handle(teacher_digest: str, kind: str, *parts: bytes) -> str:
    """``kind-`` and SHA-256 over teacher, kind and parts, cut to 160 bits."""
    content = hashlib.sha256()
    for part in (teacher_digest.encode(), kind.encode(), *parts):
        # Lengths keep neighbouring parts from running into each other.
        content.update(len(part).to_bytes(8, "little"))
        content.update(part)
    return f"{kind}-{content.hexdigest()[:40]}"
