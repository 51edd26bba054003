"""Infinity and NaN among observations: passed over, and the plan stays what it was.

Warnings are errors here, numpy's about invalid values among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from carv_client import Estimate
from carv_client.planner import DrawPlanner, Plan
from tests.client.planning.simulated import Simulation

Vjp = Callable[[np.ndarray], np.ndarray]
BAD = [math.inf, -math.inf, math.nan]


def observe(
    planner: DrawPlanner,
    simulation: Simulation,
    spoil: Callable[[Estimate], Estimate] = lambda estimate: estimate,
    vjp: Vjp = Simulation.pull_back,
    gradient: bool = True,
    seconds: float = 1.0,
) -> None:
    """One step, a probe, of one render at four draws."""
    with planner.upstream():
        simulation.now += seconds
    with planner.waiting():
        estimate = spoil(simulation.estimate(4, True))
    planner.observe(estimate)
    given = simulation.pull_back(estimate.gradient) if gradient else None
    planner.observe(estimate, vjp=vjp, gradient=given)


def planned(planner: DrawPlanner) -> Plan:
    made = planner.plan()
    assert made is not None
    return made


def observed() -> tuple[DrawPlanner, Simulation]:
    simulation = Simulation()
    planner = DrawPlanner(clock=simulation.clock)
    for _ in range(40):
        observe(planner, simulation)
    return planner, simulation


def spoilt(name: str, value: float) -> Callable[[Estimate], Estimate]:
    """An estimate with a bad number in one of its fields."""

    def spoil(estimate: Estimate) -> Estimate:
        if name == "noise_variance":
            return replace(estimate, noise_variance=np.array([value], np.float32))
        if name == "compute_seconds":
            return replace(estimate, compute_seconds=value)
        if name == "norms":
            table = estimate.draws
            assert table is not None
            return replace(estimate, draws=replace(table, norms=np.full((1, 4), value, np.float32)))
        array = np.array(getattr(estimate, name))
        array[..., 0] = value
        return replace(estimate, **{name: array})

    return spoil


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "name", ["gradient", "half_estimates", "noise_variance", "norms", "compute_seconds"]
)
def test_a_bad_number_of_an_estimate_changes_nothing(name: str, value: float) -> None:
    """K jumps to no bound and no plan is lost: costs stay, and B and W move by a step's share."""
    planner, simulation = observed()
    before, costs = planned(planner), planner.costs
    observe(planner, simulation, spoilt(name, value))
    after = planned(planner)
    assert planner.costs == costs
    assert 2 <= after.draws < 64
    assert after.predicted_variance == pytest.approx(before.predicted_variance, rel=0.1)
    observe(planner, simulation)  # compared with the last finite gradient
    assert planned(planner).closed_form_draws == pytest.approx(before.closed_form_draws, rel=0.2)


@pytest.mark.parametrize("value", [*BAD, 1e200])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_vjp_is_passed_over(value: float, gradient: bool, first: bool) -> None:
    """Also where it is the first that is seen, and where float64 overflows."""
    planner, simulation = observed()
    if first:
        simulation = Simulation()
        planner = DrawPlanner(clock=simulation.clock)

    def bad(values: np.ndarray) -> np.ndarray:
        return np.full(values[0].shape, value)

    observe(planner, simulation, vjp=bad, gradient=gradient)
    for _ in range(40):
        observe(planner, simulation, gradient=gradient)
    made = planned(planner)
    assert math.isfinite(made.predicted_variance)
    assert 2 <= made.draws < 64
    assert "parameters'" in made.reasons[-1]


@pytest.mark.parametrize("value", BAD)
def test_a_bad_gradient_of_the_callers_is_passed_over(value: float) -> None:
    planner, simulation = observed()
    before = planned(planner)
    estimate = simulation.estimate(4, True)
    planner.observe(estimate, vjp=simulation.pull_back, gradient=np.full(64, value))
    observe(planner, simulation)
    variances = planner.variances
    assert variances is not None
    assert variances.between > 0
    assert planned(planner).closed_form_draws == pytest.approx(before.closed_form_draws, rel=0.2)


@pytest.mark.parametrize("value", BAD)
def test_a_bad_baseline_probe_is_passed_over(value: float) -> None:
    planner, simulation = observed()
    planner.observe_baseline(simulation.estimate(16, True, independent=True), Simulation.pull_back)
    ecm = planned(planner).predicted_ecm
    probe = simulation.estimate(16, True, independent=True)
    planner.observe_baseline(spoilt("half_estimates", value)(probe), simulation.pull_back)
    planner.observe_baseline(probe, lambda values: values[0] * value)
    assert ecm is not None
    assert planned(planner).predicted_ecm == ecm


@pytest.mark.parametrize("value", BAD)
def test_a_bad_time_is_passed_over(value: float) -> None:
    """Of a clock that jumps, and of what a server says an evaluation takes."""
    planner, simulation = observed()
    before, good = planner.costs, simulation.now
    observe(planner, simulation, seconds=value)
    simulation.now = good
    planner.choose(1, 2, None, evaluation_seconds=value)
    observe(planner, simulation)
    assert planner.costs == before
    unseen = DrawPlanner(clock=simulation.clock)
    assert unseen.choose(1, 2, None, evaluation_seconds=value).plan is None


def test_costs_that_make_no_plan_fail_no_request() -> None:
    """A clock that runs backwards: upstream work below zero."""
    planner, simulation = observed()
    for _ in range(40):
        observe(planner, simulation, seconds=-5.0)
    costs = planner.costs
    assert costs is not None
    assert costs.upstream_seconds < 0
    assert planner.plan() is None
    assert planner.choose(1, 2).plan is None
