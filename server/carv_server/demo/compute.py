"""Bookkeeping of measured compute: what a run has spent, and on what.

One iteration spends upstream time (render, encode, backward, optimiser step: the wall clock of
this process, less its wait for the server) and denoise time (the server's own ``compute_seconds``:
the teacher's forwards for this request). Transport, encoding and queueing are recorded as
``overhead`` and charged to neither: they fall on each request whatever its K, so that leaving them
out favours small K, the baseline.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["ComputeMeter", "PricedMeter"]

_RECENT = 8


@dataclass
class ComputeMeter:
    """Compute spent against a budget, in seconds.

    Iterations are not cut, so a run ends within half an iteration of its budget, on either side:
    a method of long iterations must not get more than one of short ones.
    """

    budget: float
    upstream: float = 0.0
    denoise: float = 0.0
    overhead: float = 0.0
    iterations: int = 0
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)
    _waiting: float = field(default=0.0, repr=False)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT), repr=False)

    @property
    def spent(self) -> float:
        """Upstream plus denoise seconds so far."""
        return self.upstream + self.denoise

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, at most 1; schedules run on it."""
        return min(1.0, self.spent / self.budget)

    @property
    def expected(self) -> float:
        """Seconds that the next iteration is expected to spend: the mean of the last few."""
        return sum(self._recent) / max(1, len(self._recent))

    @property
    def exhausted(self) -> bool:
        """Whether the next iteration is expected to end more than half of itself past the
        budget."""
        return self.spent + self.expected / 2 >= self.budget

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Times one iteration; what :meth:`request` saw inside it is not upstream."""
        self._waiting = 0.0
        before, start = self.spent, self.clock()
        yield
        self.upstream += self.clock() - start - self._waiting
        self.iterations += 1
        self._recent.append(self.spent - before)

    def request(self, wall: float, compute: float) -> None:
        """Books one request: ``wall`` seconds seen here, of which ``compute`` in the teacher."""
        self._waiting += wall
        self.denoise += compute
        self.overhead += max(0.0, wall - compute)

    def per_iteration(self) -> dict[str, float]:
        """Mean seconds of an iteration by part."""
        count = max(1, self.iterations)
        return {
            "upstream_seconds": self.upstream / count,
            "denoise_seconds": self.denoise / count,
            "overhead_seconds": self.overhead / count,
        }


@dataclass
class PricedMeter(ComputeMeter):
    """Compute at set prices in place of the clock's: each iteration costs ``upstream_price``
    seconds, and ``draw_price`` for each of its ``draws``. So a run has the same length whatever
    else the machine does; the prices are measured beforehand."""

    upstream_price: float = 0.0
    draw_price: float = 0.0
    draws: int = 1

    @property
    def price(self) -> float:
        """Seconds of one iteration."""
        return self.upstream_price + self.draws * self.draw_price

    @contextmanager
    def iteration(self) -> Iterator[None]:
        yield
        self.upstream += self.upstream_price
        self.iterations += 1
        self._recent.append(self.price)

    def request(self, wall: float, compute: float) -> None:
        self.denoise += self.draws * self.draw_price
        self.overhead += max(0.0, wall - compute)
