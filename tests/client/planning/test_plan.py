"""The plan against closed forms, its bounds, and what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from carv_client._planning.plan import (
    Costs,
    PlanLimits,
    Variances,
    amortisation_bound,
    closed_form_draws,
    plan,
)

WIDE = PlanLimits(max_draws=4096)


def product(costs: Costs, variances: Variances, draws: int) -> float:
    """V·C of one render."""
    return variances.of_render(draws) * costs.of_render(draws)


@pytest.mark.parametrize(
    ("reduction", "ecm"),
    [(1.0, 2.6), (1.6, 3.2), (3.3, 4.25)],
)
def test_the_gains_of_the_paper(reduction: float, ecm: float) -> None:
    """At c_up/c_den = 9 and B/W = 0.13 (rounded to two figures in the source), against a uniform
    draw of each of two renders: V·C does not depend on R."""
    made = plan(Costs(9.0, 1.0), Variances(0.13, 1 / reduction, uniform=1.0), WIDE)
    assert made.predicted_ecm == pytest.approx(ecm, rel=0.01)
    assert made.closed_form_draws == pytest.approx(math.sqrt(9 / reduction / 0.13))
    assert abs(made.draws - made.closed_form_draws) < 1
    assert made.amortises


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 3.0, 9.0, 30.0, 300.0])
@pytest.mark.parametrize("between", [0.01, 0.13, 1.0, 10.0])
def test_independent_draws_reach_the_closed_form_optimum(ratio: float, between: float) -> None:
    """V·C over real K ≥ 1 is least at K*, where it is (√(B·c_up) + √(W·c_den))². K in 1, 2, 4, …
    cannot do better, and with x = K/K* loses the factor 1 + s·(x + 1/x − 2), s ≤ 1/4, at most
    1/2 from one even number to the next: below 1.1 from 1 to 2 and beyond."""
    costs, variances = Costs(2e-3 * ratio, 1e-3, branches=2), Variances(between, 1.0)
    made = plan(costs, variances, WIDE)
    least = (math.sqrt(between * costs.upstream_seconds) + math.sqrt(1.0 * costs.draw_seconds)) ** 2
    if closed_form_draws(costs, variances) < 1:
        assert made.draws == 1
        return
    reached = made.predicted_variance * made.predicted_cost_seconds
    assert least * (1 - 1e-12) <= reached <= 1.1 * least


def test_the_plan_is_the_best_of_all_that_are_allowed() -> None:
    """By exhaustion, over random problems with K·W(K) = a + b/K and a W(1) of its own."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        costs = Costs(*rng.lognormal(0, 2, size=2), branches=int(rng.integers(1, 4)))
        between, limit = rng.lognormal(0, 2, size=2)
        variances = Variances(between, limit, 1.4 * limit, 3.5 * limit, 6 * limit)
        most, evaluations = int(rng.integers(1, 40)), int(rng.integers(3, 60))
        made = plan(costs, variances, PlanLimits(most, max_evaluations=evaluations))
        largest = int(min(most, evaluations // costs.branches))
        products = {k: product(costs, variances, k) for k in (1, *range(2, largest + 1, 2))}
        assert min(products, key=products.__getitem__) == made.draws
        assert made.gain_over_single == pytest.approx(products[1] / products[made.draws])
        plain = (between + 6 * limit) * costs.of_render(1)
        assert made.predicted_ecm == pytest.approx(plain / products[made.draws])
        assert made.predicted_variance == pytest.approx(variances.of_render(made.draws))
        assert made.amortises == (made.gain_over_single >= 1.05)


def test_evaluations_bound_draws_and_renders() -> None:
    costs, variances = Costs(100.0, 1.0, branches=2), Variances(0.01, 1.0)
    limits = PlanLimits(max_draws=64, max_renders=8, max_evaluations=48)
    assert plan(costs, variances, limits).draws == 24
    assert plan(costs, variances, limits, renders=4).draws == 6
    assert plan(costs, variances, limits, renders=4).renders == 4
    one = plan(costs, variances, limits, renders=24)
    assert one.draws == 1
    assert one.reasons[-1] == "the limits allow one draw of a render alone"


def test_the_product_does_not_depend_on_renders() -> None:
    costs, variances = Costs(3.0, 1.0), Variances(0.2, 1.0, uniform=2.0)
    one, five = (plan(costs, variances, WIDE, renders=r) for r in (1, 5))
    assert one.draws == five.draws
    assert five.predicted_variance == pytest.approx(one.predicted_variance / 5)
    assert five.predicted_cost_seconds == pytest.approx(5 * one.predicted_cost_seconds)
    assert five.predicted_ecm == one.predicted_ecm


def test_a_step_of_so_many_seconds_is_filled_with_the_least_variance() -> None:
    """By exhaustion over R and K."""
    costs, variances = Costs(9.0, 1.0), Variances(0.13, 1.0)
    for seconds in (10.0, 17.0, 33.0, 34.0, 100.0):
        made = plan(costs, variances, PlanLimits(64, 1000, step_seconds=seconds))
        fitting = {
            (r, k): variances.of_render(k) / r
            for r in range(1, 20)
            for k in (1, *range(2, 65, 2))
            if r * costs.of_render(k) <= seconds
        }
        assert made.predicted_variance == pytest.approx(min(fitting.values()))
        assert (made.renders, made.draws) in fitting
    assert plan(costs, variances, PlanLimits(64, 3, step_seconds=1000.0)).renders == 3


def test_a_step_too_short_for_anything_says_so() -> None:
    limits = PlanLimits(64, 8, step_seconds=1.0)
    made = plan(Costs(9.0, 1.0), Variances(0.13, 1.0), limits)
    assert (made.renders, made.draws) == (1, 1)
    assert any("not even one render" in reason for reason in made.reasons)


def test_without_a_difference_between_renders_limits_bound_the_draws() -> None:
    """B = 0: V·C = W·(c_up/K + c_den) falls for ever, to a gain of 1 + c_up/c_den over K = 1."""
    made = plan(Costs(9.0, 1.0), Variances(0.0, 1.0), PlanLimits(max_draws=1000))
    assert (made.draws, made.closed_form_draws) == (1000, math.inf)
    assert made.gain_over_single == pytest.approx(10.0, rel=0.01)
    assert made.amortises
    said = " ".join(made.reasons)
    assert "renders hardly differ" in said
    assert "up to 1 + c_up/c_den = 10" in said


def test_where_renders_differ_more_than_draws_more_renders_are_advised() -> None:
    made = plan(Costs(1.0, 1.0), Variances(10.0, 1.0), WIDE)
    assert made.draws == 1
    assert not made.amortises
    assert "render more views instead" in " ".join(made.reasons)


def test_a_cheap_upstream_gains_from_strata_and_pairs_alone() -> None:
    """c_up = 0 makes amortisation worthless, K* = 0; but draws that go together still pay."""
    costs = Costs(0.0, 1.0)
    independent = plan(costs, Variances(0.1, 1.0), WIDE)
    assert (independent.draws, independent.closed_form_draws) == (1, 0.0)
    assert not independent.amortises
    coupled = plan(costs, Variances(0.1, 1.0, 1.4, single=3.5), WIDE)
    assert coupled.draws > 1
    assert coupled.amortises
    for made in (independent, coupled):
        assert "amortising the render alone gains at most 1.00 fold" in " ".join(made.reasons)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 9.0, 100.0])
@pytest.mark.parametrize("between", [0.0, 0.01, 1.0, 50.0])
def test_the_bound_on_amortisation_is_the_gain_of_independent_draws(
    ratio: float, between: float
) -> None:
    """By a fine grid over real K ≥ 1; and never above 1 + c_up/c_den."""
    costs, variances = Costs(ratio, 1.0), Variances(between, 1.0)
    grid = np.geomspace(1, 1e7, 200_001)
    products = (between + 1 / grid) * (ratio + grid)
    bound = amortisation_bound(costs, variances)
    assert bound == pytest.approx(products[0] / products.min(), rel=1e-4)
    assert bound <= 1 + ratio


def test_reasons_hold_the_numbers() -> None:
    made = plan(Costs(9.1, 1.0), Variances(0.13, 1.0), WIDE)
    assert made.reasons[0] == "c_up/c_den = 9.1, B/W(1) = 0.13: K* = 8.37, best K = 8"
    assert "over K = 1" in made.reasons[-1]


@pytest.mark.parametrize(
    ("costs", "variances", "limits"),
    [
        (Costs(1.0, 0.0), Variances(1.0, 1.0), WIDE),
        (Costs(-1.0, 1.0), Variances(1.0, 1.0), WIDE),
        (Costs(1.0, 1.0), Variances(-1.0, 1.0), WIDE),
        (Costs(1.0, 1.0), Variances(1.0, -1.0), WIDE),
        (Costs(1.0, 1.0), Variances(math.nan, 1.0), WIDE),
        (Costs(1.0, 1.0), Variances(1.0, 1.0), PlanLimits(0)),
    ],
)
def test_nonsense_is_refused(costs: Costs, variances: Variances, limits: PlanLimits) -> None:
    with pytest.raises(ValueError, match=r"costs more|variances are|limits allow"):
        plan(costs, variances, limits)


def test_no_variance_at_all_needs_one_draw() -> None:
    made = plan(Costs(1.0, 1.0), Variances(0.0, 0.0, uniform=0.0), WIDE)
    assert (made.draws, made.predicted_ecm, made.amortises) == (1, 1.0, False)
