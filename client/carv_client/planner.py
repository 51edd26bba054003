"""How many draws to make of each render, from what past steps have cost and how they varied.

    planner = DrawPlanner()
    for view in views:
        with planner.upstream():
            latents, pull_back = encode(render(parameters, view))
        estimate = client.estimate_gradient(latents, conditioning, draws="auto", planner=planner)
        planner.observe(estimate, vjp=pull_back)  # optional; calls pull_back on probes alone
        with planner.upstream():
            optimiser.step(pull_back(estimate.gradient))
    print(planner.plan())

K comes from past steps alone, so every estimate is as unbiased as with K fixed beforehand.
``plan`` is the pure function behind it; docs/planning.md has the formulas.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_client._planning.decayed import Decayed
from carv_client._planning.observations import Observations, Vjp, is_finite, pull_back
from carv_client._planning.plan import Costs, Plan, PlanLimits, Variances, plan
from carv_client._planning.spread import squared_norm
from carv_client._planning.timer import UpstreamTimer
from carv_client._types import Estimate, Limits

__all__ = [
    "BASELINE_OPTIONS",
    "AmortisationWarning",
    "Costs",
    "DrawChoice",
    "DrawPlanner",
    "Plan",
    "PlanLimits",
    "Variances",
    "Vjp",
    "plan",
]

BASELINE_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "draws": 16,
        "sampler": "iid",
        "proposal": "prior",
        "coupling": "iid",
        "control_variate": "none",
        "return_half_estimates": True,
    }
)
"""Keyword arguments of ``estimate_gradient`` for a baseline probe."""

_COST_MEMORY = 20.0
_BASELINES = 12.0
"""Baseline probes, discounted by age, to keep at hand."""
_SURE = 3.0
"""Comparisons of renders, discounted by age, before a warning is given."""
_NO_LIMIT = 1 << 30


class AmortisationWarning(UserWarning):
    """More draws of a render bring little, by what was measured; the message says why."""


@dataclass(frozen=True)
class DrawChoice:
    """What to ask for in the next step."""

    draws: int
    """K."""
    half_estimates: bool
    """Ask for half-estimates: this step is a probe, or the caller wants them."""
    baseline: bool
    """Ask once more, with ``BASELINE_OPTIONS`` at the same latents, and attach the answer."""
    plan: Plan | None
    """Behind the choice; None while there is too little data for one."""


class DrawPlanner:
    """Plans K from running estimates of costs and variances; follows an optimisation.

    Safe to use from several threads. Costs are means over the last 20 steps or so, variances
    over the last ``memory``.

    *Probes.* On the first ``warm_up`` steps, and every ``probe_interval``-th, the client asks
    for half-estimates, with K a multiple of 4, and twice that on every other probe, so that W
    is measured at K/2 and at K. Halves have half as many strata: with K·W(K) = a·(1 + 1.4/K) W
    is 15 % larger at K = 8 on such a step, at an interval of 16 1 % of W, about 0.5 % of V.
    With a VJP a probe costs one more backward pass (two where R = 1 and no ``gradient`` is
    given), about 2 % of a step at c_up/c_den = 9 with half of c_up in the backward pass; a
    baseline probe, 16 more draws and one more backward pass, comes with every probe of the
    first 200 steps, 8 %, and every 80 steps or so after, 1.5 %.

    *Space.* What counts is the variance of the parameters' gradient. Without ``vjp`` it is that
    of the latents', where different views are compared value by value as if they were the same
    pixels, and noise that the renderer cannot follow counts in full: B and W may both be far
    from what the parameters see, and K with them.

    Args:
        probe_interval: steps from one probe to the next, after ``warm_up``.
        warm_up: probes in a row at the start.
        first_draws: K until there is a plan.
        max_draws: most draws that are ever planned: V·C knows nothing of how many updates a run
            needs, and asks for ever more draws where B is small.
        step_seconds: time budget of a step for ``plan().renders``; None: R = 1, or that of the
            requests.
        memory: of variances, in steps.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        probe_interval: int = 16,
        warm_up: int = 4,
        first_draws: int = 4,
        max_draws: int = 64,
        step_seconds: float | None = None,
        memory: float = 160.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if min(probe_interval, warm_up, first_draws, max_draws) < 1 or not memory > 1:
            raise ValueError("intervals and draws are at least 1, and memory above 1")
        self._interval, self._warm_up = probe_interval, warm_up
        self._first_draws, self._max_draws = first_draws, max_draws
        self._step_seconds = step_seconds
        self._lock = threading.RLock()
        self._timer = UpstreamTimer(clock)
        self._observed = Observations(memory)
        self._upstream, self._seconds = Decayed(_COST_MEMORY), Decayed(_COST_MEMORY)
        self._told_seconds = 0.0
        self._branches = 1.0
        self._limits: Limits | None = None
        self._steps = 0
        self._seen: weakref.WeakSet[Estimate] = weakref.WeakSet()
        self._baselines: weakref.WeakKeyDictionary[Estimate, Estimate]
        self._baselines = weakref.WeakKeyDictionary()
        self._has_gradients = False
        self._warned = False

    def upstream(self) -> AbstractContextManager[None]:
        """Time a block of upstream work: rendering, encoding, the backward pass through them.

        All blocks from one estimate to the next belong to one step and add up; inner blocks
        count once, and a request inside does not count. A block that raises leaves its step out.
        Where no block is ever marked, upstream is what passes from a reply to the next request.
        """
        return self._timer.block()

    def waiting(self) -> AbstractContextManager[None]:
        """Around a request; the client's own doing with ``draws="auto"``."""
        return self._timer.wait()

    def observe(
        self,
        estimate: Estimate,
        vjp: Vjp | None = None,
        gradient: npt.ArrayLike | None = None,
    ) -> None:
        """Learn from an estimate. The client has done so in latent space with ``draws="auto"``;
        observing the same one again adds the parameters' view of it. What is infinite or NaN,
        in it or in what ``vjp`` makes of it, is passed over.

        Args:
            estimate: ends a step when it is first observed.
            vjp: J^T; called on probes alone, where it gives W by one backward pass of g_A − g_B,
                and B + W by one of half the renders against the other half. Where R = 1, B + W is
                half the squared difference of successive gradients, which also holds how far the
                expectation has moved in between: B comes out too large rather than too small.
                Successive are then the gradients of all steps if ``gradient`` is given, else
                those of probes, by one more backward pass.
            gradient: J^T applied to ``estimate.gradient``, summed over renders, [P], where the
                caller has it anyway; of no use without a ``vjp`` on probes. A copy is kept.
        """
        finite = is_finite(estimate)
        with self._lock:
            if estimate not in self._seen:
                self._seen.add(estimate)
                self._end_step(estimate)
                if finite:
                    self._observed.add_latents(estimate)
            self._has_gradients |= gradient is not None
            ask = not self._has_gradients
        if not finite or (vjp is None and gradient is None):
            return
        pulled = pull_back(estimate, vjp, gradient, ask)
        with self._lock:
            self._observed.add_parameters(estimate, pulled)
            baseline = self._baselines.pop(estimate, None) if vjp is not None else None
        if vjp is not None and baseline is not None:
            self.observe_baseline(baseline, vjp)

    def attach_baseline(self, estimate: Estimate, baseline: Estimate) -> None:
        """Keep a baseline probe until the estimate at the same latents is observed with a VJP;
        the client's own doing with ``draws="auto"``."""
        with self._lock:
            self._baselines[estimate] = baseline

    def observe_baseline(self, baseline: Estimate, vjp: Vjp) -> None:
        """Learn which share of a single draw's noise the parameters see, from the half-estimates
        of an estimate with ``BASELINE_OPTIONS``.

        Predicted ECM in parameter space rests on it. What strata and pairs leave is another part
        of the noise, and J^T passes another share of it: at one state of the demo's field 19 %, of
        a single draw's variance 26 %.
        """
        halves = baseline.half_estimates
        if halves is None:
            raise ValueError("a baseline probe needs half-estimates")
        if not is_finite(baseline):
            return
        # One render at a time: summed over renders, J^T of independent noises has as much spread
        # as of one, and not the same as that of the noises.
        with self._lock:
            render = self._observed.baseline_probes % len(baseline.gradient)
        difference = np.zeros_like(baseline.gradient)
        difference[render] = halves[0, render] - halves[1, render]
        above, below = squared_norm(vjp(difference)), squared_norm(difference)
        with self._lock:
            self._observed.add_baseline(above, below)

    @property
    def costs(self) -> Costs | None:
        """As measured; None until an evaluation and a step's upstream work have been."""
        with self._lock:
            upstream, evaluation = self._upstream.mean, self._seconds.mean or self._told_seconds
            if upstream is None or not evaluation > 0:
                return None
            return Costs(upstream, evaluation, self._branches)

    @property
    def variances(self) -> Variances | None:
        """As measured, of the parameters' gradient where it was observed, else of the latents';
        None until there are half-estimates and two renders to compare."""
        with self._lock:
            return self._observed.variances

    @property
    def wants_halves(self) -> bool:
        """Whether the next estimate should come with half-estimates."""
        with self._lock:
            return self._steps < self._warm_up or self._steps % self._interval == 0

    def plan(self, renders: int | None = None) -> Plan | None:
        """The plan by what was measured until now; None where that is too little, or gives none.

        Args:
            renders: R, where the caller has chosen; else 1, or what fits into ``step_seconds``.
        """
        with self._lock:
            costs, variances, limits = self.costs, self.variances, self._limits
            in_parameters = self._observed.in_parameters
        if costs is None or variances is None:
            return None
        bounds = PlanLimits(self._max_draws, _NO_LIMIT, None, self._step_seconds)
        if limits is not None:
            bounds = replace(
                bounds,
                max_draws=min(self._max_draws, limits.max_draws or _NO_LIMIT),
                max_renders=limits.max_renders or _NO_LIMIT,
                max_evaluations=limits.max_evaluations or None,
            )
        try:
            made = plan(costs, variances, bounds, renders=renders)
        except (ValueError, ArithmeticError):  # inside a request: without a plan it still goes on
            return None
        said = (
            "variances are those of the parameters' gradient"
            if in_parameters
            else "variances are those of the latents' gradient, with different views compared "
            "value by value: give observe a vjp for the parameters'"
        )
        return replace(made, reasons=(*made.reasons, said))

    def choose(
        self,
        renders: int = 1,
        branches: float | None = None,
        limits: Limits | None = None,
        evaluation_seconds: float = 0.0,
        half_estimates: bool = False,
    ) -> DrawChoice:
        """What to ask for in the next step.

        Args:
            renders: R of its latents.
            branches: evaluations of one draw; as last seen where None.
            limits: the teacher's; as last given where None. One that is 0 bounds nothing.
            evaluation_seconds: what the server says; used until a reply has shown it.
            half_estimates: the caller asks for them, probe or not: K is even then.
        """
        with self._lock:
            self._branches = branches or self._branches
            self._limits = limits or self._limits
            if 0 < evaluation_seconds < math.inf:
                self._told_seconds = evaluation_seconds
            limits, allowed = self._limits, _NO_LIMIT
            if limits is not None:
                evaluations = limits.max_evaluations or _NO_LIMIT
                affordable = int(evaluations / (renders * self._branches))
                allowed = max(1, min(limits.max_draws or _NO_LIMIT, affordable))
            most = min(self._max_draws, allowed)
            made = self.plan(renders)
            probe = self.wants_halves and most > 1
            # Every other probe measures W(K) itself, from halves of K draws each.
            double = self._steps >= self._warm_up and self._steps // self._interval % 2 == 1
            scarce = self._observed.in_parameters and self._observed.baselines < _BASELINES
            warn = made is not None and most > 1 and self._should_warn(made)
        if made is not None and warn:
            warnings.warn("; ".join(made.reasons), AmortisationWarning, stacklevel=2)
        draws = min(self._first_draws, most) if made is None else made.draws
        if probe:  # halves of an even number of draws: an odd one leaves one without a partner
            most_whole = most - most % 4 if most >= 4 else 2
            whole = 4 * -(-draws // 4)
            draws = min(2 * whole if double else whole, most_whole)
        elif half_estimates and draws % 2:
            draws = draws + 1 if draws < most else max(2, draws - 1)
        baseline = probe and scarce and allowed >= BASELINE_OPTIONS["draws"]
        return DrawChoice(draws, probe or half_estimates, baseline, made)

    def _should_warn(self, made: Plan) -> bool:
        """Once, as soon as it is sure enough."""
        costs = self.costs
        pays = made.amortises and (costs is None or costs.ratio >= 1)
        if self._warned or pays or self._observed.comparisons < _SURE:
            return False
        self._warned = True
        return True

    def _end_step(self, estimate: Estimate) -> None:
        """Its costs, and the age of all that was before."""
        self._steps += 1
        for mean in (self._upstream, self._seconds, self._observed):
            mean.age()
        self._branches = estimate.evaluations_spent / max(1, estimate.draws_spent)
        self._seconds.add(estimate.compute_seconds, estimate.evaluations_spent)
        seconds = self._timer.flush()
        if seconds is not None:
            self._upstream.add(seconds, len(estimate.gradient))
