"""What past requests' draws taught, by objective and run; the adaptive proposal's memory.

An estimate is unbiased as long as its proposal is fixed before its own draws. Two rules keep
that so:

- a request is planned on what was recorded before it, but for a last few draws, and its draws are
  recorded when it is answered;
- a seed names its draws, so that a request that repeats a seed repeats draws that are in the
  record by now. It gets the record that the seed's first request was planned on: the same
  request with the same seed then also has the same draws.

The second rule holds for the ``remembered_seeds`` seeds that a history saw last; a client that
comes back to a seed after more others should name a fixed proposal. Draws whose seed is no longer
remembered when they are answered are not recorded. Every front keeps histories of its own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.past import (
    DrawStatistics,
    Past,
    empty_statistics,
    past_on_grid,
    record_batches,
)
from carv_server.sampling.schedule import Schedule

__all__ = ["DrawHistories", "HistoryConfig", "HistoryKey", "history_key"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

# Draws are added to what requests are planned on once they are so large a part of it: a proposal
# changes little by fewer, and making it takes longer than all else that a small request needs.
_SETTLING_SHARE = 1.0 / 32.0
_MOST_UNSETTLED = 64


@dataclass(frozen=True)
class HistoryConfig:
    """Bounds of what is remembered of one teacher's draws.

    Attributes:
        memory_draws: draws after which an older draw counts 1/e.
        max_histories: histories kept; over it, the tenant that has most loses the one that it
            used least recently.
        remembered_seeds: seeds of each history whose record is kept for repeats. A history
            takes at most about 1 KiB a seed.
    """

    memory_draws: float = 512.0
    max_histories: int = 256
    remembered_seeds: int = 128


@dataclass(frozen=True)
class HistoryKey:
    """Whose past: a tenant's, for one residual h, under the client's label.

    Attributes:
        residual: digest of the coefficients a_j(t) and d(t), and which branches are at the
            reference. Weighting and prior are not part of h; conditionings are left out, since a
            run changes them with every view.
    """

    tenant: str
    residual: bytes
    label: str


def history_key(
    objective: ObjectiveTables, use_reference: Sequence[bool], label: str, tenant: str = ""
) -> HistoryKey:
    """The key of an objective's history.

    Args:
        use_reference: for each branch, whether it is evaluated at the reference latents.
    """
    return HistoryKey(tenant, objective.residual_digest + bytes(use_reference), label)


@dataclass
class _Entry:
    """``unsettled``: recorded since ``statistics``, so many ``unsettled_draws``; ``latest``: the
    past that was made last, and of what."""

    statistics: DrawStatistics
    seeds: OrderedDict[int, DrawStatistics]
    unsettled: list[tuple[Int64Array, Float64Array]] = field(
        default_factory=list[tuple[Int64Array, Float64Array]]
    )
    unsettled_draws: int = 0
    latest: tuple[DrawStatistics, Past | None] | None = None


class DrawHistories:
    """Histories of one teacher. Lives on one event loop."""

    def __init__(self, schedule: Schedule, config: HistoryConfig) -> None:
        self._schedule = schedule
        self._config = config
        self._entries: OrderedDict[HistoryKey, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def most(self) -> int:
        """Histories that are kept at once."""
        return self._config.max_histories

    def recall(self, key: HistoryKey, seed: int) -> Past | None:
        """What a request with this seed may be planned on; None where there is no past."""
        entry = self._entry(key)
        if seed not in entry.seeds:
            entry.seeds[seed] = entry.statistics
            if len(entry.seeds) > self._config.remembered_seeds:
                entry.seeds.popitem(last=False)
        entry.seeds.move_to_end(seed)
        return self._past(entry, entry.seeds[seed])

    def look(self, key: HistoryKey) -> Past | None:
        """The past as of now, to be reported; ``recall`` is what draws are planned on."""
        entry = self._entries.get(key)
        return None if entry is None else self._past(entry, self._settled(entry))

    def statistics(self, key: HistoryKey) -> DrawStatistics | None:
        """What requests are planned on now, to be shown; nothing changes by looking."""
        entry = self._entries.get(key)
        return None if entry is None else entry.statistics

    def record(
        self, key: HistoryKey, seed: int | None, timesteps: Int64Array, residuals: Float64Array
    ) -> None:
        """Add the draws of an answered request; not where its seed is forgotten by now, since a
        repeat would then be planned on them.

        Args:
            seed: as recalled before the draws were planned; None for draws of streams that are
                never planned on a past, a profile's.
            timesteps: int64 [n].
            residuals: float64 [n, 3]: ||h||^2, <h, eps> and ||eps||^2 of each draw.
        """
        entry = self._entry(key)
        if seed is not None and seed not in entry.seeds:
            return
        # A view keeps the whole microbatch alive that it is of.
        kept = residuals if residuals.base is None else residuals.copy()
        entry.unsettled.append((timesteps, kept))
        entry.unsettled_draws += len(timesteps)
        if (
            entry.unsettled_draws >= _SETTLING_SHARE * entry.statistics.draws
            or len(entry.unsettled) >= _MOST_UNSETTLED
        ):
            self._settled(entry)

    def _settled(self, entry: _Entry) -> DrawStatistics:
        """The statistics of all that was recorded."""
        if entry.unsettled:
            entry.statistics = record_batches(
                entry.statistics, self._schedule, entry.unsettled, self._config.memory_draws
            )
            entry.unsettled.clear()
            entry.unsettled_draws = 0
        return entry.statistics

    def _past(self, entry: _Entry, statistics: DrawStatistics) -> Past | None:
        if entry.latest is None or entry.latest[0] is not statistics:
            entry.latest = (statistics, past_on_grid(statistics, self._schedule))
        return entry.latest[1]

    def _superfluous(self) -> HistoryKey:
        """The least recently used of the tenant that has most."""
        counts = Counter(key.tenant for key in self._entries)
        most = max(counts.values())
        return next(key for key in self._entries if counts[key.tenant] == most)

    def _entry(self, key: HistoryKey) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(empty_statistics(), OrderedDict())
            if len(self._entries) > self._config.max_histories:
                del self._entries[self._superfluous()]
        self._entries.move_to_end(key)
        return entry
