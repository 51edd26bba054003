"""draws="auto" against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from carv_client import (
    AsyncTeacherClient,
    Conditioning,
    DrawPlanner,
    Estimate,
    InvalidRequestError,
    TeacherClient,
    _auto,
)
from tests.server.teachers import oracle_teacher, running
from tests.support.oracle import EVENT_SHAPE, oracle_mixture


@pytest.fixture(scope="module")
def client(analytic_server: str) -> Iterator[TeacherClient]:
    with TeacherClient(analytic_server) as client:
        yield client


@pytest.fixture(scope="module")
def component(client: TeacherClient) -> Conditioning:
    return client.create_conditioning(class_id=1, teacher="mixture")


class View:
    """Latents of different views: samples about a component of the mixture."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def latents(self, renders: int) -> np.ndarray:
        noise = self._rng.normal(size=(renders, *EVENT_SHAPE))
        return (oracle_mixture().means[1] + noise).astype(np.float32)


class Upstream:
    """A clock that stands still but for the upstream work that a test pretends to do."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, planner: DrawPlanner, seconds: float) -> None:
        with planner.upstream():
            self.now += seconds


def test_a_planner_learns_costs_and_variances_of_a_real_server(
    client: TeacherClient, component: Conditioning
) -> None:
    """In latent space, R = 1, 200 steps, an upstream so dear that K = 8 is at its limit on any
    machine. B, W(8) and W_u(1) against those of 300 views and seeds of their own. Over eight
    choices of seeds the planner's B was off by 5 %, W_u(1) by 12 % (one standard deviation), and
    W(8), from some 16 probes of a law with long tails, by factors of 0.5 to 2.7; B is 50 W(8)."""
    clock, views = Upstream(), View(0)
    planner = DrawPlanner(clock=clock, memory=400.0, max_draws=8)
    options: dict[str, Any] = {"guidance_scale": 3.0, "history": "planner-test"}
    estimates: list[Estimate] = []
    for seed in range(200):
        clock.work(planner, 5.0)
        estimates.append(
            client.estimate_gradient(
                views.latents(1), component, draws="auto", planner=planner, seed=seed, **options
            )
        )
    assert [estimate.draws_spent for estimate in estimates[:2]] == [4, 4]
    probes = [step for step, each in enumerate(estimates) if each.half_estimates is not None]
    assert probes == [0, 1, 2, 3, *range(16, 200, 16)]
    costs, variances = planner.costs, planner.variances
    assert costs is not None
    assert variances is not None
    assert costs.branches == 2
    assert costs.upstream_seconds == pytest.approx(5.0)
    spent = [(each.compute_seconds, each.evaluations_spent) for each in estimates]
    seconds, evaluations = np.array(spent).T
    rates = seconds / evaluations
    assert rates.min() <= costs.evaluation_seconds <= rates.max()

    def total(draws: int, **sampling: Any) -> tuple[float, float]:
        """(B + W(K), W(K)) by pairs of estimates at 300 views."""
        x = views.latents(150)
        first, second = (
            client.estimate_gradient(
                x, component, draws=draws, seed=10_000 + repeat, **options, **sampling
            ).gradient.reshape(150, -1)
            for repeat in range(2)
        )
        within = ((first - second) ** 2).sum(axis=1).mean() / 2
        return first.var(axis=0, ddof=1).sum(), within

    made = planner.plan()
    assert made is not None
    draws = made.draws
    assert draws == estimates[-1].draws_spent == 8
    both, within = total(draws, sampler="stratified", proposal="adaptive", coupling="antithetic")
    _, uniform = total(1, sampler="iid", proposal="prior", coupling="iid", control_variate="none")
    assert within / 4 < variances.within(draws) < 4 * within
    assert variances.between == pytest.approx(both - within, rel=0.2)
    assert variances.uniform == pytest.approx(uniform, rel=0.4)
    assert variances.uniform is not None
    plain = (variances.between + variances.uniform) * costs.of_render(1)
    here = variances.of_render(made.draws) * costs.of_render(made.draws)
    assert made.predicted_ecm == pytest.approx(plain / here)


def test_baseline_probes_are_made_once_parameters_are_observed(
    client: TeacherClient, component: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J^T = identity here, so both spaces agree: their uniform variances are the same."""
    monkeypatch.setattr(_auto, "_LEAST_SECONDS", 30.0)  # no probe is given up
    clock, views, calls = Upstream(), View(1), []

    def vjp(gradient: np.ndarray) -> np.ndarray:
        calls.append(gradient.shape)
        return gradient.sum(axis=0).ravel()

    planner = DrawPlanner(clock=clock, warm_up=6)
    for seed in range(6):
        clock.work(planner, 10.0)
        estimate = client.estimate_gradient(
            views.latents(2), component, draws="auto", planner=planner, guidance_scale=1.0,
            seed=seed,
        )  # fmt: skip
        planner.observe(estimate, vjp=vjp)
    # Two for each probe, and one more for each baseline probe: none on the first.
    assert len(calls) == 2 * 6 + 5
    made = planner.plan()
    assert made is not None
    assert made.predicted_ecm is not None


def test_the_client_keeps_a_planner_of_its_own(
    client: TeacherClient, component: Conditioning
) -> None:
    planner = client.planner("mixture")
    assert client.planner("mixture") is planner
    assert client.planner() is not planner
    for seed in range(3):
        client.estimate_gradient(View(2).latents(2), component, draws="auto", seed=seed)
    costs = planner.costs
    assert costs is not None, "upstream is the time between reply and request"
    assert costs.upstream_seconds > 0
    assert costs.branches == 2, "guidance"


def test_half_estimates_asked_for_keep_the_draws_even(
    client: TeacherClient, component: Conditioning
) -> None:
    planner = DrawPlanner(first_draws=1, warm_up=1)
    for seed in range(2):
        estimate = client.estimate_gradient(
            View(3).latents(1), component, draws="auto", planner=planner, seed=seed,
            return_half_estimates=True,
        )  # fmt: skip
        assert estimate.half_estimates is not None
        assert estimate.draws_spent % 2 == 0


def test_explicit_draws_leave_auto_aside(client: TeacherClient, component: Conditioning) -> None:
    planner = DrawPlanner()
    estimate = client.estimate_gradient(
        View(4).latents(1), component, draws="auto", planner=planner, timesteps=[10, 500, 900]
    )
    assert estimate.draws_spent == 3
    assert planner.wants_halves
    assert planner.variances is None


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"draws": "many"}, "draws"), ({"draws": 4, "planner": DrawPlanner()}, "planner")],
)
def test_contradictions_are_refused(
    client: TeacherClient, component: Conditioning, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.estimate_gradient(View(5).latents(1), component, **arguments)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_many_in_flight_on_the_asynchronous_client() -> None:
    """Eight at once: each counts as a step, and none as upstream work."""

    async def work() -> DrawPlanner:
        async with (
            running(oracle_teacher()) as (server, _),
            AsyncTeacherClient(server.address) as client,
        ):
            conditioning = await client.create_conditioning(class_id=1)
            clock, views = Upstream(), View(6)
            planner = DrawPlanner(clock=clock)
            for _ in range(4):
                clock.work(planner, 8 * 0.5)
                await asyncio.gather(
                    *(
                        client.estimate_gradient(
                            views.latents(1), conditioning, draws="auto", planner=planner
                        )
                        for _ in range(8)
                    )
                )
            return planner

    planner = asyncio.run(work())
    costs = planner.costs
    assert costs is not None
    # 4 s for each 8 requests, the later rounds weighing more, as do the last zeros in a round.
    assert costs.upstream_seconds == pytest.approx(0.5, rel=0.25)
    assert planner.plan() is not None
