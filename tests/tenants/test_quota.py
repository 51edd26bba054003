"""Quotas on a clock of our own: what a minute lets through, what is in flight, what comes back."""

from __future__ import annotations

import pytest

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.tenants.quota import IN_FLIGHT, PER_SECOND, Meter, Quota


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _refused(quota: Quota | Meter, evaluations: int) -> RequestError:
    with pytest.raises(RequestError) as caught, quota.charged(evaluations):
        pass
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    return caught.value


@pytest.mark.parametrize("evaluations", [1, 7, 32, 100])
@pytest.mark.parametrize("rate", [100.0, 1000.0])
def test_a_minute_of_flooding_passes_the_quota_within_5_percent(
    evaluations: int, rate: float
) -> None:
    """A client that comes back exactly when it is told gets all of its quota, and no more.

    Breaks with: a bucket of 10 s (`_BURST_SECONDS = 10`), a bucket that does not fill while it is
    looked at, or a delay that is 10 % too long.
    """
    clock = Clock()
    quota = Quota("a", clock, rate)
    passed, end = 0, clock.now + 60.0
    while clock.now < end:
        try:
            with quota.charged(evaluations):
                passed += evaluations
        except RequestError as error:
            clock.now += max(1e-9, error.retry_delay_seconds or 0.0)
    assert passed == pytest.approx(60.0 * rate, rel=0.05)


def test_requests_above_the_bucket_keep_to_the_rate() -> None:
    """Breaks with: a request above the bucket that is charged the bucket alone."""
    clock = Clock()
    quota = Quota("a", clock, 10.0)
    passed, start = 0, clock.now
    while passed < 10_000:
        try:
            with quota.charged(500):
                passed += 500
        except RequestError as error:
            clock.now += error.retry_delay_seconds or 0.0
    assert (clock.now - start) * 10.0 == pytest.approx(passed, rel=0.06)


def test_a_refusal_names_the_quota_and_when_to_come_back() -> None:
    clock = Clock()
    quota = Quota("a", clock, per_second=10.0, in_flight=20)
    with quota.charged(10):
        pass
    error = _refused(quota, 5)
    assert error.retry_delay_seconds == pytest.approx(0.5)
    assert error.metadata == {"quota": PER_SECOND}
    assert [v.subject for v in error.quota_violations] == ["tenant:a"]
    clock.now += 0.49
    _refused(quota, 5)
    clock.now += 0.01
    with quota.charged(5):
        pass


def test_what_is_in_flight_is_bounded_and_given_back() -> None:
    """Breaks with: `in_flight` that is not taken back after a failure."""
    quota = Quota("a", Clock(), in_flight=10)
    with quota.charged(6):
        error = _refused(quota, 5)
        assert error.metadata == {"quota": IN_FLIGHT} and error.retry_delay_seconds is not None
        with pytest.raises(KeyError), quota.charged(4):
            raise KeyError
        with quota.charged(4):
            assert quota.in_flight == 10
    assert quota.in_flight == 0
    alone = _refused(quota, 11)
    assert alone.retry_delay_seconds is None, "it can never pass"
    assert "fewer draws" in alone.message


@pytest.mark.parametrize(
    ("reason", "costs"),
    [(Reason.QUEUE_FULL, False), (Reason.DRAINING, False), (Reason.NON_FINITE_RESULT, True)],
)
def test_what_was_not_computed_costs_nothing(reason: Reason, costs: bool) -> None:
    """Breaks with: no refund, or one for everything that fails."""
    quota = Quota("a", Clock(), 10.0)
    with pytest.raises(RequestError), quota.charged(10):
        raise RequestError(reason, "no")
    if costs:
        _refused(quota, 1)
    else:
        with quota.charged(10):
            pass


def test_a_changed_quota_keeps_the_debt() -> None:
    clock = Clock()
    quota = Quota("a", clock, 10.0)
    with quota.charged(10):
        quota.set(20.0, None)
        _refused(quota, 1)
        clock.now += 1.0
        with quota.charged(20):
            pass
        quota.set(None, None)
        with quota.charged(1_000_000):
            pass


def test_a_piece_above_the_quota_in_flight_runs_alone() -> None:
    quota = Quota("a", Clock(), in_flight=10)
    meter = Meter(quota)
    assert not meter.under_way
    with quota.charged(1):
        assert _refused(meter, 50).retry_delay_seconds is not None
    with meter.charged(50):
        assert meter.under_way
        _refused(meter, 1)
