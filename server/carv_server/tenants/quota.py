"""Quotas of one tenant: evaluations a second, and evaluations in flight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from carv.errors import QuotaViolation, Reason
from carv_server.errors import RequestError

__all__ = ["IN_FLIGHT", "PER_SECOND", "Meter", "Quota"]

PER_SECOND, IN_FLIGHT = "evaluations_per_second", "evaluations_in_flight"

# The bucket holds what this time gives: what a minute lets through is then within 1/60 of the rate.
_BURST_SECONDS = 1.0
# Nothing tells when requests in flight will be answered.
_IN_FLIGHT_RETRY_SECONDS = 0.25
_LARGEST_RETRY_SECONDS = 60.0
# What was refused for these was not computed, and costs nothing.
_NOT_COMPUTED = frozenset({Reason.QUEUE_FULL, Reason.DRAINING, Reason.NO_REPLICA})


class Quota:
    """A bucket of evaluations that fills at the rate, and a count. Lives on one event loop.

    A request above the bucket's size passes once it is full, and is paid for afterwards: so the
    long-run rate holds for requests of any size.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        tenant: str,
        clock: Callable[[], float],
        per_second: float | None = None,
        in_flight: int | None = None,
    ) -> None:
        self._tenant = tenant
        self._clock = clock
        self._rate = math.inf
        self._most = math.inf
        self._burst = 0.0
        self._level = 0.0
        self._filled = clock()
        self.in_flight = 0
        self.set(per_second, in_flight)

    def set(self, per_second: float | None, in_flight: int | None) -> None:
        """New quotas; what was let through counts against them."""
        rate = math.inf if per_second is None else per_second
        if rate != self._rate:
            # A new bucket is full; one that was in use keeps its debt.
            fresh = self._rate == math.inf
            self._fill()
            self._rate = rate
            self._burst = 0.0 if rate == math.inf else max(1.0, rate * _BURST_SECONDS)
            self._level = self._burst if fresh else min(self._level, self._burst)
        self._most = math.inf if in_flight is None else in_flight

    @property
    def settled(self) -> bool:
        """Whether nothing is in flight and nothing is owed: a new one would be no other."""
        self._fill()
        return self.in_flight == 0 and (self._rate == math.inf or self._level >= self._burst)

    @contextmanager
    def charged(self, evaluations: int, *, piece: bool = False) -> Iterator[None]:
        """Around the work of one request.

        Args:
            piece: of a call that chooses its pieces itself: one above the quota in flight passes
                while nothing else is in flight.

        Raises:
            RequestError: QUOTA_EXCEEDED, with RetryInfo where it can ever pass.
        """
        self._take(evaluations, piece)
        try:
            yield
        except RequestError as error:
            if error.reason in _NOT_COMPUTED:
                self._refund(evaluations)
            raise
        finally:
            self.in_flight -= evaluations

    def _take(self, evaluations: int, piece: bool) -> None:
        alone = piece and self.in_flight == 0
        if self.in_flight + evaluations > self._most and not alone:
            possible = piece or evaluations <= self._most
            raise self._refused(
                IN_FLIGHT,
                f"{evaluations} evaluations and {self.in_flight} in flight; the quota is "
                f"{self._most:g} in flight"
                + ("" if possible else ": ask for fewer draws, renders or conditionings at once"),
                _IN_FLIGHT_RETRY_SECONDS if possible else None,
            )
        if self._rate != math.inf:
            self._fill()
            missing = min(float(evaluations), self._burst) - self._level
            if missing > 1e-9 * self._burst:
                raise self._refused(
                    PER_SECOND,
                    f"{evaluations} evaluations, above the quota of {self._rate:g} a second",
                    min(missing / self._rate, _LARGEST_RETRY_SECONDS),
                )
            self._level -= evaluations
        self.in_flight += evaluations

    def _refund(self, evaluations: int) -> None:
        if self._rate != math.inf:
            self._level = min(self._burst, self._level + evaluations)

    def _fill(self) -> None:
        now = self._clock()
        if self._rate != math.inf:
            self._level = min(self._burst, self._level + (now - self._filled) * self._rate)
        self._filled = now

    def _refused(self, quota: str, what: str, delay: float | None) -> RequestError:
        return RequestError(
            Reason.QUOTA_EXCEEDED,
            what if delay is None else f"{what}; retry after {delay:.2f} s",
            retry_delay_seconds=delay,
            metadata={"quota": quota},
            quota_violations=(QuotaViolation(f"tenant:{self._tenant}", f"{quota}: {what}"),),
        )


class Meter:
    """One call's charges, of work that it submits piece by piece.

    Args:
        check: called ahead of each piece; raises RequestError where the call may no longer go on.

    Attributes:
        under_way: whether anything was let through.
    """

    def __init__(self, quota: Quota, check: Callable[[], None] = lambda: None) -> None:
        self._quota = quota
        self._check = check
        self.under_way = False

    @contextmanager
    def charged(self, evaluations: int) -> Iterator[None]:
        """As ``Quota.charged``; and what the check raises."""
        self._check()
        with self._quota.charged(evaluations, piece=True):
            self.under_way = True
            yield
