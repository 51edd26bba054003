"""The planner on simulated optimisations whose B, W(K) and costs are known."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from carv_client import Limits
from carv_client.planner import (
    BASELINE_OPTIONS,
    AmortisationWarning,
    Costs,
    DrawPlanner,
    Plan,
    PlanLimits,
    Variances,
    plan,
)
from tests.client.planning.simulated import Simulation

LIMITS = Limits(
    max_message_bytes=1 << 26,
    max_draws=64,
    max_renders=16,
    max_branches=8,
    max_evaluations=4096,
    max_prompts=8,
    max_prompt_characters=100,
)
WITHIN_SHARE, SINGLE_SHARE = 0.2, 0.25  # of the noise's variance that J^T passes


def run(
    planner: DrawPlanner,
    simulation: Simulation,
    steps: int,
    *,
    renders: int = 1,
    vjp: bool = True,
    gradients: bool = True,
) -> list[int]:
    """The walk of an optimisation with draws="auto"; K of each step."""
    draws = []
    for _ in range(steps):
        with planner.upstream():
            simulation.now += renders * simulation.upstream_seconds * 2 / 3
        choice = planner.choose(renders, simulation.branches)
        with planner.waiting():
            estimate = simulation.estimate(choice.draws, choice.half_estimates, renders)
            baseline = None
            if choice.baseline:
                baseline = simulation.estimate(BASELINE_OPTIONS["draws"], True, renders, True)
        planner.observe(estimate)
        if baseline is not None:
            planner.attach_baseline(estimate, baseline)
        gradient = simulation.pull_back(estimate.gradient) if gradients else None
        if vjp:
            planner.observe(estimate, vjp=simulation.pull_back, gradient=gradient)
        with planner.upstream():
            simulation.now += renders * simulation.upstream_seconds / 3
        simulation.now += 0.37  # logging and the like
        draws.append(choice.draws)
    return draws


def known(simulation: Simulation, in_parameters: bool) -> tuple[Costs, Variances]:
    """What the planner should find."""
    within, single = (WITHIN_SHARE, SINGLE_SHARE) if in_parameters else (1.0, 1.0)
    return (
        Costs(simulation.upstream_seconds, simulation.evaluation_seconds, simulation.branches),
        Variances(
            simulation.between * single,
            simulation.limit * within,
            simulation.excess * within,
            simulation.single * single,
            simulation.uniform * single,
        ),
    )


def current(planner: DrawPlanner) -> Plan:
    made = planner.plan()
    assert made is not None
    return made


def test_the_first_steps_are_probes_at_four_draws() -> None:
    planner = DrawPlanner()
    assert planner.plan() is None
    assert (planner.costs, planner.variances) == (None, None)
    choice = planner.choose(renders=1, branches=2)
    assert (choice.draws, choice.half_estimates, choice.plan) == (4, True, None)
    simulation = Simulation()
    simulation_planner = DrawPlanner(clock=simulation.clock)
    assert run(simulation_planner, simulation, 2) == [4, 4]


def test_probes_come_at_their_interval() -> None:
    simulation = Simulation()
    planner = DrawPlanner(clock=simulation.clock, probe_interval=8, warm_up=2)
    probes = []
    for step in range(40):
        if planner.wants_halves:
            probes.append(step)
        run(planner, simulation, 1)
    assert probes == [0, 1, 8, 16, 24, 32]


@pytest.mark.parametrize("renders", [1, 4])
@pytest.mark.parametrize("in_parameters", [True, False])
def test_costs_and_variances_are_found(renders: int, in_parameters: bool) -> None:
    """Costs exactly; variances of 800 steps with a memory of 800 (50 probes). A squared norm
    over 64 values of normal noise has a relative spread of √(2/64) to √(2/40) = 0.22, so 50
    probes give W(2) to W(4) to 3 %, and the fit in a, b leaves 15 % for a. B is a difference of
    two such: B + W(K) to 0.22/√400 on steps with R = 1. 15 % throughout, seeds fixed."""
    simulation = Simulation(seed=1)
    planner = DrawPlanner(clock=simulation.clock, memory=800.0)
    run(planner, simulation, 800, renders=renders, vjp=in_parameters)
    costs, variances = planner.costs, planner.variances
    assert costs is not None
    assert variances is not None
    expected_costs, expected = known(simulation, in_parameters)
    assert costs.upstream_seconds == pytest.approx(expected_costs.upstream_seconds)
    assert costs.draw_seconds == pytest.approx(expected_costs.draw_seconds)
    assert variances.between == pytest.approx(expected.between, rel=0.15)
    assert variances.limit == pytest.approx(expected.limit, rel=0.15)
    for draws in (2, 4, 8, 16):
        assert variances.within(draws) == pytest.approx(expected.within(draws), rel=0.12)
    assert variances.single == pytest.approx(expected.single, rel=0.15)
    assert variances.uniform == pytest.approx(expected.uniform, rel=0.15)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 3.0, 9.0, 30.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_plan_is_nearly_the_best_and_its_gain_comes_true(ratio: float, seed: int) -> None:
    """With the default settings, in parameter space: the true V·C of the planned K is within 5 %
    of the best K's, and predicted ECM within 15 % of the true one."""
    simulation = Simulation(seed=seed)
    simulation = replace(
        simulation,
        upstream_seconds=ratio * simulation.branches * simulation.evaluation_seconds,
    )
    planner = DrawPlanner(clock=simulation.clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortisationWarning)
        run(planner, simulation, 480)
    made = current(planner)
    costs, variances = known(simulation, in_parameters=True)
    best = plan(costs, variances, PlanLimits(64))
    least = best.predicted_variance * best.predicted_cost_seconds
    reached = variances.of_render(made.draws) * costs.of_render(made.draws)
    assert reached <= 1.05 * least
    assert variances.uniform is not None
    plain = (variances.between + variances.uniform) * costs.of_render(1)
    assert made.predicted_ecm == pytest.approx(plain / reached, rel=0.15)


def test_latents_alone_would_predict_less_than_the_parameters_see() -> None:
    """J^T passes 1/4 of a single draw's variance, 1/5 of coupled draws': predicted ECM without
    the baseline probes would be too low by the share of W in V."""
    simulation = Simulation(between=0.0, seed=4)
    seen = DrawPlanner(clock=simulation.clock, memory=800.0)
    run(seen, simulation, 800)
    blind_simulation = Simulation(between=0.0, seed=4)
    blind = DrawPlanner(clock=blind_simulation.clock, memory=800.0)
    run(blind, blind_simulation, 800, vjp=False)
    ecm, less = current(seen).predicted_ecm, current(blind).predicted_ecm
    assert ecm is not None
    assert less is not None
    assert ecm / less == pytest.approx(SINGLE_SHARE / WITHIN_SHARE, rel=0.12)
    assert "give observe a vjp" in current(blind).reasons[-1]
    assert "parameters'" in current(seen).reasons[-1]


def test_there_is_no_prediction_of_ecm_before_a_baseline_probe() -> None:
    simulation = Simulation()
    planner = DrawPlanner(clock=simulation.clock)
    estimates = [simulation.estimate(4, True) for _ in range(3)]
    for estimate in estimates:
        with planner.upstream():
            simulation.now += 1.0
        planner.observe(estimate, vjp=simulation.pull_back)
    assert current(planner).predicted_ecm is None
    planner.observe_baseline(simulation.estimate(4, True, independent=True), simulation.pull_back)
    assert current(planner).predicted_ecm is not None
    with pytest.raises(ValueError, match="half-estimates"):
        planner.observe_baseline(simulation.estimate(4, False), simulation.pull_back)


def test_costs_that_change_change_the_plan() -> None:
    """c_up times 16 moves K* by 4. Costs have a memory of 20 steps: after 60 the old ones weigh
    e^-3. Then back again."""
    simulation = Simulation(upstream_seconds=0.08, seed=2)
    planner = DrawPlanner(clock=simulation.clock)
    run(planner, simulation, 200)
    before = current(planner)
    simulation.upstream_seconds *= 16
    run(planner, simulation, 80)
    dear = current(planner)
    assert dear.closed_form_draws == pytest.approx(4 * before.closed_form_draws, rel=0.25)
    assert dear.draws >= 2 * before.draws
    simulation.upstream_seconds /= 16
    run(planner, simulation, 80)
    assert current(planner).draws <= before.draws + 2


def test_variances_that_change_change_the_plan() -> None:
    """B falls to a hundredth, as views come to agree: K* rises tenfold in theory. 480 steps are
    three memories of 160, after which 5 % of the old B is left: fourfold, then."""
    simulation = Simulation(between=2.0, seed=3)
    planner = DrawPlanner(clock=simulation.clock)
    run(planner, simulation, 300)
    before = current(planner).closed_form_draws
    simulation.between = 0.02
    run(planner, simulation, 480)
    assert current(planner).closed_form_draws > 3 * before


def test_without_gradients_probes_are_compared_with_each_other() -> None:
    calls = []
    simulation = Simulation(seed=5)

    def vjp(gradient: np.ndarray) -> np.ndarray:
        calls.append(len(gradient))
        return simulation.pull_back(gradient)

    planner = DrawPlanner(clock=simulation.clock, probe_interval=8)
    for step in range(160):
        with planner.upstream():
            simulation.now += simulation.upstream_seconds
        choice = planner.choose(1, 2)
        estimate = simulation.estimate(choice.draws, choice.half_estimates)
        before = len(calls)
        planner.observe(estimate, vjp=vjp)
        planner.observe(estimate)
        assert len(calls) - before == (2 if choice.half_estimates else 0), step
    variances = planner.variances
    assert variances is not None
    # 22 comparisons with a relative spread of 0.25 for B + W(4), of which B is two thirds; the
    # fit's own error comes on top.
    assert variances.between == pytest.approx(0.5 * SINGLE_SHARE, rel=0.25)


def test_one_backward_pass_through_all_renders_gives_the_total() -> None:
    """Two for each probe, of 4 or of 5 renders."""
    for renders in (4, 5):
        simulation, calls = Simulation(seed=6), []

        def vjp(
            gradient: np.ndarray, simulation: Simulation = simulation, calls: list[int] = calls
        ) -> np.ndarray:
            calls.append(len(gradient))
            return simulation.pull_back(gradient)

        planner = DrawPlanner(clock=simulation.clock, warm_up=200)
        for _ in range(200):
            planner.observe(simulation.estimate(4, True, renders), vjp=vjp)
        assert calls == [renders] * 400
        variances = planner.variances
        assert variances is not None
        assert variances.between == pytest.approx(0.5 * SINGLE_SHARE, rel=0.12)
        assert variances.within(2) == pytest.approx(simulation.within(2) * WITHIN_SHARE, rel=0.05)


def test_what_was_observed_is_not_observed_again() -> None:
    simulation = Simulation()
    planner, once = DrawPlanner(clock=simulation.clock), DrawPlanner(clock=simulation.clock)
    for estimate in [simulation.estimate(4, True) for _ in range(6)]:
        once.observe(estimate)
        for _ in range(3):
            planner.observe(estimate)
    assert planner.variances == once.variances


def test_limits_bound_the_choice() -> None:
    simulation = Simulation(between=0.0, upstream_seconds=4.0)
    limits = replace(LIMITS, max_draws=6)
    planner = DrawPlanner(clock=simulation.clock)
    for _ in range(20):
        with planner.upstream():
            simulation.now += simulation.upstream_seconds
        choice = planner.choose(1, 2, limits)
        assert choice.draws == (4 if choice.half_estimates or choice.plan is None else 6)
        planner.observe(simulation.estimate(choice.draws, choice.half_estimates))
    assert planner.choose(2, 4, replace(limits, max_evaluations=8)).draws == 1
    assert planner.choose(1, 2, replace(limits, max_draws=1)).half_estimates is False


def test_limits_that_a_server_does_not_tell_bound_nothing() -> None:
    """Zeros, as an older server's reply has them."""
    none = replace(LIMITS, max_draws=0, max_renders=0, max_evaluations=0)
    simulation = Simulation(seed=12)
    free, zeros = (DrawPlanner(clock=simulation.clock, step_seconds=2.0) for _ in range(2))
    for _ in range(20):
        with free.upstream(), zeros.upstream():
            simulation.now += simulation.upstream_seconds
        choice = free.choose(1, 2)
        assert zeros.choose(1, 2, none).draws == choice.draws
        with free.waiting(), zeros.waiting():
            estimate = simulation.estimate(choice.draws, choice.half_estimates)
        free.observe(estimate)
        zeros.observe(estimate)
    assert current(zeros) == current(free)
    assert current(zeros).renders > 1


@pytest.mark.parametrize(("first", "most", "draws"), [(3, 3, 2), (3, 4, 4), (1, 4, 2), (1, 1, 2)])
def test_half_estimates_of_the_callers_keep_k_even_within_the_limit(
    first: int, most: int, draws: int
) -> None:
    """But for a limit of one draw, of which there are no halves."""
    planner = DrawPlanner(first_draws=first, max_draws=most, warm_up=1)
    planner.observe(Simulation().estimate(4, True))  # the only probe for a while
    assert planner.choose(1, 1, LIMITS).draws == first
    choice = planner.choose(1, 1, LIMITS, half_estimates=True)
    assert (choice.draws, choice.half_estimates, choice.baseline) == (draws, True, False)


def test_a_time_budget_of_a_step_is_filled_with_renders() -> None:
    simulation = Simulation(seed=7)
    planner = DrawPlanner(clock=simulation.clock, step_seconds=2.0)
    run(planner, simulation, 100)
    made = current(planner)
    assert made.renders > 1
    assert made.predicted_cost_seconds <= 2.0
    one = planner.plan(renders=1)
    assert one is not None
    assert one.renders == 1


def test_a_warning_comes_once_where_amortisation_does_not_pay() -> None:
    """Renders that differ a hundred times as much as their draws."""
    simulation = Simulation(between=500.0, upstream_seconds=0.05, seed=8)
    planner = DrawPlanner(clock=simulation.clock)
    with pytest.warns(AmortisationWarning, match="render more views instead") as caught:
        run(planner, simulation, 60)
    assert len(caught) == 1


def test_a_warning_comes_where_the_upstream_is_cheaper_than_a_draw() -> None:
    simulation = Simulation(upstream_seconds=0.01, seed=9)
    planner = DrawPlanner(clock=simulation.clock)
    with pytest.warns(AmortisationWarning, match="c_up < c_den"):
        run(planner, simulation, 30)
    assert current(planner).amortises, "by strata and pairs"


def test_no_warning_where_it_pays() -> None:
    """Warnings are errors here."""
    for between in (0.0, 0.5):
        simulation = Simulation(between=between, seed=10)
        run(DrawPlanner(clock=simulation.clock), simulation, 100)


def test_independent_draws_are_planned_with_the_closed_form() -> None:
    simulation = Simulation(seed=11)
    planner = DrawPlanner(clock=simulation.clock)
    for _ in range(120):
        with planner.upstream():
            simulation.now += simulation.upstream_seconds
        planner.observe(simulation.estimate(4, planner.wants_halves, independent=True))
    variances = planner.variances
    assert variances is not None
    assert variances.excess == 0.0
    assert variances.limit == pytest.approx(simulation.uniform, rel=0.15)


@pytest.mark.parametrize(
    "arguments", [{"probe_interval": 0}, {"first_draws": 0}, {"max_draws": 0}, {"memory": 1.0}]
)
def test_nonsense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DrawPlanner(**arguments)  # type: ignore[arg-type]
