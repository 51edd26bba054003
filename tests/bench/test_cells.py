"""Running variances against closed forms, and the coverage of their error bars."""

from __future__ import annotations

import math

import numpy as np
import pytest

from carv_server.bench.cells import Cell, Measured, jackknife, least, mean_of

SCALES = np.array([3.0, 1.0, 0.3, 0.1])
RNG = 20260521


def test_a_cell_is_the_sample_variance_however_it_was_fed() -> None:
    x = 1e4 + np.random.default_rng(RNG).normal(size=(97, 4)) * SCALES
    exact = x.var(axis=0, ddof=1).sum()
    whole, parts, left, right = Cell(), Cell(), Cell(), Cell()
    whole.add(x)
    for batch in np.split(x, [1, 2, 40, 41]):
        parts.add(batch)
    left.add(x[:30])
    right.add(x[30:])
    left.merge(right)
    for cell in (whole, parts, left):
        assert cell.count == 97
        # Float64 keeps the 16 digits less the 4 of the offset squared.
        assert cell.variance.value == pytest.approx(exact, rel=1e-9)
        np.testing.assert_allclose(cell.mean, x.mean(axis=0), rtol=1e-12)
    # One after another or at once: the same steps.
    assert parts.variance.error == pytest.approx(whole.variance.error, rel=1e-6)


@pytest.mark.parametrize(("kind", "low", "high"), [("normal", 0.91, 0.97), ("laplace", 0.85, 0.97)])
def test_error_bars_cover(kind: str, low: float, high: float) -> None:
    """Of 2,000 cells of 64 replicates, two standard errors cover tr Cov about 95 % of the time:
    less by the skewness of a variance, which heavy tails in one leading direction make worse."""
    rng = np.random.default_rng(RNG)
    size = (2000, 64, 4)
    unit = rng.normal(size=size) if kind == "normal" else rng.laplace(size=size) / math.sqrt(2)
    exact = float((SCALES**2).sum())
    covered = 0
    values = np.empty(2000)
    for i, replicates in enumerate(unit * SCALES):
        cell = Cell()
        cell.add(replicates)
        variance = cell.variance
        values[i] = variance.value
        covered += abs(variance.value - exact) <= 2 * variance.error
    assert low <= covered / 2000 <= high
    # Unbiased: the mean of 2,000 within four of its own standard errors (false alarm 1e-4).
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(2000)


def test_errors_of_quotients_and_means() -> None:
    """Against 200,000 simulated pairs; first order is good to a percent at 3 % errors."""
    rng = np.random.default_rng(RNG)
    first, second = Measured(5.0, 0.15), Measured(2.0, 0.06)
    a, b = (rng.normal(m.value, m.error, size=200_000) for m in (first, second))
    assert first.over(second).value == 2.5
    assert first.over(second).error == pytest.approx((a / b).std(), rel=0.02)
    assert mean_of([first, second]).error == pytest.approx(((a + b) / 2).std(), rel=0.02)
    assert first.plus(second).value == 7.0
    assert first.plus(second).error == pytest.approx((a + b).std(), rel=0.02)
    assert least([first, second]) is second


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = np.random.default_rng(RNG).normal(size=50)

    def mean(left_out: int | None) -> float:
        return float(np.delete(x, [] if left_out is None else left_out).mean())

    found = jackknife(50, mean)
    assert found.value == pytest.approx(x.mean())
    # An identity for means.
    assert found.error == pytest.approx(x.std(ddof=1) / math.sqrt(50), rel=1e-9)
