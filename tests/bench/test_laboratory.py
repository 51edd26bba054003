"""The bench's estimates are the server's."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from carv_server.bench.grid import between_views
from carv_server.bench.laboratory import Laboratory, request_plans
from carv_server.bench.methods import OURS, guided_objective
from carv_server.bench.parameter import _factors
from carv_server.bench.serving import Chain, LiveServer
from carv_server.bench.states import State
from carv_server.sampling.plan import ControlVariate, Sampling, resolve


def test_estimates_are_those_that_the_server_answers(laboratory: Laboratory, state: State) -> None:
    """The same past, seed and choices through ``estimate_gradient``: equal to float32."""
    objective = guided_objective(laboratory.schedule, 7.5)
    latents = state.latents[None]
    sampling = Sampling(control_variate=ControlVariate.NOISE)
    with LiveServer(laboratory) as server:
        chain = Chain("run", latents, [state.conditioning], objective, 8)
        (past,) = server.warm([chain], 20, seed=1)
        answer = server.estimate(
            latents, state.conditioning, objective, sampling, 8, seed=77, history="run"
        )
    assert answer.sampling is not None and answer.sampling.past_draws == past.draws
    resolved = resolve(sampling, objective, past, 8)
    assert np.any(resolved.control != 0)
    plan = request_plans(resolved, objective, 1, 8, [77])
    draws = laboratory.evaluate(plan, latents, [state.conditioning], 77)
    np.testing.assert_allclose(
        draws.estimates(objective)[0], answer.gradient.reshape(-1), rtol=1e-4, atol=1e-5
    )


def test_ours_is_what_a_request_that_says_nothing_gets() -> None:
    assert OURS.sampling == Sampling() and OURS.learns


def test_runs_do_not_learn_from_each_other(laboratory: Laboratory, state: State) -> None:
    objective = guided_objective(laboratory.schedule, 7.5)

    def chain(label: str) -> Chain:
        return Chain(label, state.latents[None], [state.conditioning], objective, 8)

    with LiveServer(laboratory) as server:
        alone = server.warm([chain("first")], 10, seed=1)[0]
    with LiveServer(laboratory) as server:
        first, second = server.warm([chain("first"), chain("second")], 10, seed=1)
    np.testing.assert_array_equal(first.root_second_moment, alone.root_second_moment)
    assert np.any(second.root_second_moment != first.root_second_moment), "noise of its own"


def test_a_run_learns_from_each_answer_before_its_next_request(
    laboratory: Laboratory, state: State
) -> None:
    """Breaks with: requests that overtake what the answer before them taught."""
    objective = guided_objective(laboratory.schedule, 7.5)
    latents, prompt = state.latents[None], state.conditioning
    chain = Chain("run", latents, [prompt], objective, 8)
    first = 1 + (zlib.crc32(b"run") << 8)  # as ``warm`` counts
    with LiveServer(laboratory) as server:
        (past,) = server.warm([chain], 3, seed=1)
    with LiveServer(laboratory) as server:
        for i in range(3):
            server.estimate(latents, prompt, objective, Sampling(), 8, first + i, "run")
        one_by_one = server.past(chain)
    assert past.draws == one_by_one.draws
    np.testing.assert_array_equal(past.root_second_moment, one_by_one.root_second_moment)


def test_factors_keep_inner_products_of_parameter_gradients() -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    jacobians = [torch.randn(6, 40, generator=generator) for _ in range(3)]
    factors = _factors(jacobians)
    g = np.random.default_rng(2).normal(size=(3, 6))
    exact: Any = sum(j.numpy().T.astype(float) @ v for j, v in zip(jacobians, g, strict=True))
    mapped = np.einsum("cd,cdp->p", g, factors)
    # float32 products of 40 terms.
    np.testing.assert_allclose(mapped @ mapped, exact @ exact, rtol=1e-5)


def test_between_views_is_unbiased_for_the_spread_of_exact_gradients() -> None:
    """400 repetitions with known gradients: within four standard errors (false alarm 6e-5)."""
    rng = np.random.default_rng(3)
    exact = rng.normal(size=(5, 1, 3))
    wanted = float(((exact - exact.mean(axis=0)) ** 2).sum()) / 5
    found = [between_views(exact + rng.normal(size=(5, 16, 3))) for _ in range(400)]
    values = np.array([each.value for each in found])
    assert abs(values.mean() - wanted) < 4 * values.std() / 20
    errors = np.array([each.error for each in found])
    # The jackknife's error is that of one repetition, within a quarter.
    assert 0.75 < np.sqrt((errors**2).mean()) / values.std() < 1.25
