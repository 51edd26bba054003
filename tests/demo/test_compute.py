"""The books of measured compute, on a clock that only the tests move."""

from __future__ import annotations

import pytest

from carv_server.demo.compute import ComputeMeter, PricedMeter


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def spend(meter: ComputeMeter, clock: Clock, upstream: float, wait: float, denoise: float) -> None:
    """One iteration: half the upstream work, a request, the other half."""
    with meter.iteration():
        clock.now += upstream / 2
        clock.now += wait
        meter.request(wall=wait, compute=denoise)
        clock.now += upstream / 2


def test_upstream_excludes_the_wait_and_denoise_is_the_servers_own() -> None:
    clock = Clock()
    meter = ComputeMeter(budget=10.0, clock=clock)
    spend(meter, clock, upstream=0.02, wait=0.05, denoise=0.03)
    spend(meter, clock, upstream=0.04, wait=0.05, denoise=0.05)
    assert meter.iterations == 2
    assert meter.upstream == pytest.approx(0.06)
    assert meter.denoise == pytest.approx(0.08)
    assert meter.overhead == pytest.approx(0.02)
    assert meter.spent == pytest.approx(0.14)
    assert meter.fraction == pytest.approx(0.014)
    assert meter.per_iteration() == pytest.approx(
        {"upstream_seconds": 0.03, "denoise_seconds": 0.04, "overhead_seconds": 0.01}
    )


@pytest.mark.parametrize("budget", [5.0, 5.3, 5.6, 6.1, 0.7])
@pytest.mark.parametrize(("upstream", "denoise"), [(0.03, 0.01), (0.3, 0.05), (0.3, 0.9)])
def test_runs_of_any_cost_end_within_half_an_iteration_of_the_budget(
    budget: float, upstream: float, denoise: float
) -> None:
    clock = Clock()
    meter = ComputeMeter(budget, clock=clock)
    while not meter.exhausted:
        spend(meter, clock, upstream, denoise, denoise)
    cost = upstream + denoise
    assert abs(meter.spent - budget) <= cost / 2 + 1e-9
    assert meter.expected == pytest.approx(cost)


def test_the_first_iteration_is_always_made() -> None:
    clock = Clock()
    meter = ComputeMeter(budget=0.1, clock=clock)
    assert not meter.exhausted
    spend(meter, clock, 0.5, 0.5, 0.5)
    assert meter.exhausted and meter.fraction == 1.0


def test_the_expectation_follows_recent_iterations() -> None:
    """After a slow start (caches, lazy imports) the stop depends on what iterations cost now."""
    clock = Clock()
    meter = ComputeMeter(budget=10.0, clock=clock)
    spend(meter, clock, 6.0, 0.0, 0.0)
    assert meter.expected == pytest.approx(6.0) and not meter.exhausted
    for _ in range(8):
        spend(meter, clock, 0.1, 0.0, 0.0)
    assert meter.expected == pytest.approx(0.1)
    while not meter.exhausted:
        spend(meter, clock, 0.1, 0.0, 0.0)
    assert meter.spent == pytest.approx(10.0, abs=0.05)


def test_an_iteration_that_fails_is_not_booked() -> None:
    meter = ComputeMeter(budget=1.0)
    with pytest.raises(RuntimeError), meter.iteration():
        raise RuntimeError("the server is gone")
    assert meter.iterations == 0 and meter.upstream == 0.0


def test_set_prices_charge_the_same_whatever_the_clock_says() -> None:
    meter = PricedMeter(1.0, upstream_price=0.06, draw_price=0.01, draws=4)
    while not meter.exhausted:
        with meter.iteration():
            meter.request(wall=5.0, compute=3.0)
    assert meter.price == pytest.approx(0.1)
    assert meter.iterations == 10 and meter.spent == pytest.approx(1.0)
    assert (meter.upstream, meter.denoise) == pytest.approx((0.6, 0.4))
