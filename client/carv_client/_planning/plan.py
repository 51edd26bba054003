"""How many draws of how many renders: the mathematics, pure functions over numbers.

The mean over R renders with K draws each has the variance (trace of the covariance)

    V(R, K) = (B + W(K)) / R,    at the cost    C(R, K) = R·(c_up + K·c_den)

with B between renders, W(K) the variance of one render's mean over K draws, c_up the seconds of
one render's upstream work and c_den those of one draw. V·C does not depend on R, and is what a
method pays for a given variance: two methods compare by their V·C (ECM, the effective compute
multiplier, is its ratio). For independent draws W(K) = a/K, and V·C is least at

    K* = √((c_up/c_den)·(a/B)),    with    V·C = (√(B·c_up) + √(a·c_den))²

(Glasserman 2003, §4.3.2; CARV, arXiv 2605.21489, Eq. 13 to 17). Stratified, antithetic draws fall
faster, K·W(K) ≈ a + b/K for even K, so the best K is found by trying all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

__all__ = [
    "Costs",
    "Plan",
    "PlanLimits",
    "Variances",
    "amortisation_bound",
    "closed_form_draws",
    "plan",
]

_PAYS = 1.05
"""Gain over K = 1 from which amortisation is said to pay."""
_NO_BETWEEN = 0.01
"""B/W(1) below which renders count as hardly different."""


@dataclass(frozen=True)
class Costs:
    """What one render and one evaluation cost, in seconds."""

    upstream_seconds: float
    """c_up: render, encode, and the backward pass through them, for one render."""
    evaluation_seconds: float
    """One forward of the teacher, one row."""
    branches: float = 1.0
    """Evaluations of one draw."""

    @property
    def draw_seconds(self) -> float:
        """c_den."""
        return self.evaluation_seconds * self.branches

    @property
    def ratio(self) -> float:
        """c_up/c_den; infinite where draws are free."""
        return _divide(self.upstream_seconds, self.draw_seconds)

    def of_render(self, draws: int) -> float:
        """c_up + K·c_den, seconds."""
        return self.upstream_seconds + draws * self.draw_seconds


@dataclass(frozen=True)
class Variances:
    """Where the variance of a gradient comes from, in squared units of the gradient."""

    between: float
    """B: between independent renders."""
    limit: float
    """a: where K·W(K) tends for many draws."""
    excess: float = 0.0
    """b: K·W(K) = a + b/K for even K. 0 for independent draws."""
    single: float | None = None
    """W(1), which has neither strata nor antithetic pairs; a + b where None."""
    uniform: float | None = None
    """Variance of one independent draw from the prior, for the comparison; None: not known."""

    def within(self, draws: int) -> float:
        """W(K), for K = 1 and even K. An odd K above 1 does somewhat worse than this says."""
        if draws == 1 and self.single is not None:
            return self.single
        return (self.limit + self.excess / draws) / draws

    def of_render(self, draws: int) -> float:
        """B + W(K)."""
        return self.between + self.within(draws)


@dataclass(frozen=True)
class PlanLimits:
    """What a plan must keep."""

    max_draws: int
    """K."""
    max_renders: int = 1
    """R; matters with ``step_seconds`` alone."""
    max_evaluations: int | None = None
    """R · K · branches."""
    step_seconds: float | None = None
    """Most seconds of one step, all its renders done one after another; None: no such bound."""


@dataclass(frozen=True)
class Plan:
    """R and K for the next step, and what is predicted of them."""

    renders: int
    """R."""
    draws: int
    """K."""
    predicted_variance: float
    """(B + W(K))/R."""
    predicted_cost_seconds: float
    """R·(c_up + K·c_den)."""
    predicted_ecm: float | None
    """V·C of plain sampling (one uniform independent draw of each render) over that of this plan;
    None where the variance of a uniform draw is not known."""
    closed_form_draws: float
    """K* = √((c_up/c_den)·(a/B)), before bounds and without b; infinite where B = 0."""
    amortises: bool
    """Whether K draws of a render beat one by at least 5 % of V·C."""
    gain_over_single: float
    """V·C at K = 1 over V·C at this K, the draws made in the same way."""
    reasons: tuple[str, ...]
    """Why, in words with numbers."""


def plan(
    costs: Costs, variances: Variances, limits: PlanLimits, *, renders: int | None = None
) -> Plan:
    """The K in {1, 2, 4, 6, …} within the limits with the least V·C, the smaller of equals.

    V·C leaves R open, so R is 1, or ``renders`` where the caller has chosen. With
    ``limits.step_seconds``, R is what fits into a step, and (R, K) the pair with the least
    variance of a step.

    Raises:
        ValueError: a draw that costs nothing, a negative variance, or limits that allow no draw.
    """
    _check(costs, variances, limits)
    draws, counts = _candidates(costs, limits, renders)
    within = np.array([variances.within(int(k)) for k in draws])
    seconds = costs.upstream_seconds + draws * costs.draw_seconds
    variance = variances.between + within
    by_step = limits.step_seconds is not None and renders is None
    merit = variance / counts if by_step else variance * seconds
    best = int(np.argmin(merit))
    k, count = int(draws[best]), int(counts[best])
    product = float(variance[best] * seconds[best])
    gain = _divide(variances.of_render(1) * costs.of_render(1), product)
    ecm = None
    if variances.uniform is not None:
        plain = (variances.between + variances.uniform) * costs.of_render(1)
        ecm = _divide(plain, product)
    made = Plan(
        renders=count,
        draws=k,
        predicted_variance=float(variance[best]) / count,
        predicted_cost_seconds=count * float(seconds[best]),
        predicted_ecm=ecm,
        closed_form_draws=closed_form_draws(costs, variances),
        amortises=gain >= _PAYS,
        gain_over_single=gain,
        reasons=(),
    )
    return replace(made, reasons=_reasons(made, costs, variances, limits, int(draws[-1])))


def closed_form_draws(costs: Costs, variances: Variances) -> float:
    """K* = √((c_up/c_den)·(a/B)); 0 where the upstream or the draws' variance is 0."""
    return math.sqrt(_divide(costs.upstream_seconds * variances.limit,
                             costs.draw_seconds * variances.between))  # fmt: skip


def amortisation_bound(costs: Costs, variances: Variances) -> float:
    """The gain over K = 1 of amortising the render alone: what K independent draws, W(1)/K,
    would bring at the best real K ≥ 1. Never above 1 + c_up/c_den."""
    up, den = costs.upstream_seconds, costs.draw_seconds
    between, single = variances.between, variances.within(1)
    if up * single <= den * between:  # K* ≤ 1
        return 1.0
    least = (math.sqrt(between * up) + math.sqrt(single * den)) ** 2
    return _divide((between + single) * (up + den), least)


def _candidates(
    costs: Costs, limits: PlanLimits, renders: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """K to try, and R for each."""
    evaluations = math.inf if limits.max_evaluations is None else limits.max_evaluations
    most = min(limits.max_draws, evaluations / ((renders or 1) * costs.branches))
    draws = np.array([1, *range(2, math.floor(most) + 1, 2)], dtype=np.int64)
    counts = np.full(len(draws), renders or 1, dtype=np.int64)
    if limits.step_seconds is None or renders is not None:
        return draws, counts
    fits = np.floor(
        limits.step_seconds * (1 + 1e-9) / (costs.upstream_seconds + draws * costs.draw_seconds)
    )
    fits = np.minimum(fits, np.minimum(limits.max_renders, evaluations / (draws * costs.branches)))
    counts = np.maximum(1, np.floor(fits)).astype(np.int64)
    kept = (fits >= 1) | (draws == 1)
    return draws[kept], counts[kept]


def _reasons(
    made: Plan, costs: Costs, variances: Variances, limits: PlanLimits, largest: int
) -> tuple[str, ...]:
    between, single = variances.between, variances.within(1)
    share = _divide(between, single)
    said = [
        f"c_up/c_den = {costs.ratio:.3g}, B/W(1) = {share:.3g}: K* = {made.closed_form_draws:.3g}, "
        f"best K = {made.draws}"
    ]
    if limits.step_seconds is not None:
        if made.predicted_cost_seconds > limits.step_seconds * (1 + 1e-9):
            said.append(
                f"not even one render with one draw fits into {limits.step_seconds:.3g} s: "
                f"it takes {made.predicted_cost_seconds:.3g} s"
            )
        else:
            said.append(
                f"{made.renders} renders of {made.draws} draws fit into a step of "
                f"{limits.step_seconds:.3g} s"
            )
    if made.draws == largest > 1:
        said.append(f"K = {largest} is the most that the limits allow: more would gain further")
    if share < _NO_BETWEEN:
        said.append(
            f"renders hardly differ (B/W(1) = {share:.2g}): nearly all variance is the draws', so "
            f"amortisation pays up to 1 + c_up/c_den = {1 + costs.ratio:.3g} fold, and limits "
            "rather than B bound K"
        )
    if costs.upstream_seconds < costs.draw_seconds:
        said.append(
            f"c_up < c_den ({costs.ratio:.2g}): amortising the render alone gains at most "
            f"{amortisation_bound(costs, variances):.2f} fold; what more there is comes from "
            "strata and antithetic pairs"
        )
    if largest == 1:
        said.append("the limits allow one draw of a render alone")
    elif made.amortises:
        said.append(f"K = {made.draws} gains {made.gain_over_single:.2f} fold over K = 1")
    elif share > 1:
        said.append(
            f"renders differ more than draws do (B/W(1) = {share:.3g}): more draws of a render "
            f"gain {_percent(made.gain_over_single)} over one; render more views instead"
        )
    else:
        said.append(f"more draws of a render gain {_percent(made.gain_over_single)} over one")
    return tuple(said)


def _percent(gain: float) -> str:
    return f"{100 * (gain - 1):.1f} %"


def _check(costs: Costs, variances: Variances, limits: PlanLimits) -> None:
    if not (costs.draw_seconds > 0 and costs.upstream_seconds >= 0):
        raise ValueError(f"a draw costs more than nothing, a render not less: {costs}")
    values = (variances.between, variances.within(1), variances.within(2), variances.uniform or 0.0)
    if not all(0 <= value < math.inf for value in values):
        raise ValueError(f"variances are finite and at least 0: {variances}")
    if limits.max_draws < 1 or limits.max_renders < 1:
        raise ValueError(f"the limits allow no draw: {limits}")


def _divide(above: float, below: float) -> float:
    """above/below; infinite over zero, and 1 for 0/0: two things that are both free are equal."""
    if below > 0:
        return above / below
    return math.inf if above > 0 else 1.0
