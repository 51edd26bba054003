"""Quadrature over a bank against replicates of the server's plans, on the oracle teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from carv_server.bench.direct import Effort, Seeds, measure_fixed, measure_uniform
from carv_server.bench.kernels import (
    Bank,
    iid_variance,
    make_bank,
    measurer,
    noise_control,
    strata_variance,
)
from carv_server.bench.laboratory import Laboratory
from carv_server.bench.methods import (
    PAPER,
    PAPER_ANTITHETIC,
    STRATA,
    Method,
    difference_objective,
    guided_objective,
)
from carv_server.bench.states import State
from tests.support.oracle import oracle_mixture

GRID = np.arange(20, 981, 30)
GUIDANCE = 3.0
# z beyond 4 has a false-alarm rate of 6e-5 for normal errors; the seeds are fixed.
LARGEST_Z = 4.0


@pytest.fixture(scope="module")
def bank(laboratory: Laboratory, state: State) -> Bank:
    return make_bank(laboratory, state, GRID, 64, seed=11)


@pytest.mark.parametrize("draws", [1, 3, 8])
@pytest.mark.parametrize(
    ("method", "proposal", "antithetic"),
    [
        (STRATA, "uniform", False),
        (PAPER, "weight", False),
        (PAPER_ANTITHETIC, "weight", True),
    ],
)
def test_quadrature_agrees_with_replicates(
    laboratory: Laboratory,
    state: State,
    bank: Bank,
    method: Method,
    proposal: str,
    antithetic: bool,
    draws: int,
) -> None:
    objective = guided_objective(laboratory.schedule, GUIDANCE)
    measure = measurer(bank, objective)
    expected = measure(
        lambda k: strata_variance(k, getattr(k, proposal)(), draws, antithetic=antithetic)
    )
    seeds = Seeds(1000)
    found = measure_fixed(
        laboratory, state, method, {"": objective}, draws, Effort(0.0, 1024, 512), seeds
    )[""]
    # Interpolation in t adds to both errors; 2 % of the variance bounds it on this grid.
    error = np.hypot(np.hypot(found.error, expected.error), 0.02 * found.value)
    assert abs(found.value - expected.value) < LARGEST_Z * error
    assert expected.relative < 0.15


def test_a_uniform_draw_and_its_mean(laboratory: Laboratory, state: State, bank: Bank) -> None:
    objectives = {
        "guided": guided_objective(laboratory.schedule, GUIDANCE),
        "difference": difference_objective(laboratory.schedule),
    }
    found = measure_uniform(laboratory, state, objectives, Effort(0.0, 512, 64), Seeds(1))
    for name, objective in objectives.items():
        measure = measurer(bank, objective)
        expected = measure(lambda k: iid_variance(k, k.uniform(), 1))
        error = np.hypot(np.hypot(found[name].error, expected.error), 0.02 * expected.value)
        assert abs(found[name].value - expected.value) < LARGEST_Z * error
        kernels = measure.kernels()
        assert iid_variance(kernels, kernels.uniform(), 8) == pytest.approx(expected.value / 8)
        # One stratum of the prior is a single independent draw.
        single = strata_variance(kernels, kernels.uniform(), 1, antithetic=True)
        assert single == pytest.approx(expected.value)


def test_the_squared_gradient_is_the_closed_form(
    laboratory: Laboratory, state: State, bank: Bank
) -> None:
    """||g||^2 of E[w (a1 eps_hat_1 + a2 eps_hat_2)], the noise term having mean zero."""
    objective = guided_objective(laboratory.schedule, GUIDANCE)
    measure = measurer(bank, objective)
    found = measure(lambda k: k.squared_gradient)
    x = state.latents.reshape(1, *laboratory.event_shape)
    weights = objective.prior * objective.weighting
    gradient: Any = sum(
        np.einsum("t,td->d", weights * a, _expected(laboratory, x, label))
        for a, label in zip(objective.branch_coefficients, (1, 2), strict=True)
    )
    exact = float(gradient @ gradient)
    assert abs(found.value - exact) < LARGEST_Z * np.hypot(found.error, 0.02 * exact)


def test_the_noise_control_variate_lowers_the_second_moment(
    laboratory: Laboratory, bank: Bank
) -> None:
    """With the fitted c, <h + c eps, eps> has mean zero at every timestep of the grid, and
    E||h||^2 falls by the square of what it takes out."""
    objective = guided_objective(laboratory.schedule, 1.0)
    control = noise_control(bank, objective)
    off, on = (measurer(bank, objective, c).kernels() for c in (None, control))
    removed = np.diag(off.same) - np.diag(on.same)
    size = float(np.square(bank.noise, dtype=np.float64).sum()) / len(bank.noise)
    np.testing.assert_allclose(removed, control[GRID] ** 2 * size, rtol=1e-4, atol=1e-6)


def _expected(laboratory: Laboratory, x: np.ndarray, label: int) -> np.ndarray:
    means = oracle_mixture().expected_noise(x, label, laboratory.schedule)
    return means.reshape(len(laboratory.schedule), -1)
