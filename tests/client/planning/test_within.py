"""The fit of W(K) recovers what it was made from."""

from __future__ import annotations

import numpy as np
import pytest

from carv_client._planning.within import (
    COUPLED,
    INDEPENDENT,
    WithinPoint,
    WithinShape,
    fit_within,
)


def within(limit: float, excess: float, draws: int) -> float:
    return (limit + excess / draws) / draws


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("ratio", [0.0, 0.7, 1.4, 2.5])
def test_exact_observations_at_two_draws_are_fitted(scale: float, ratio: float) -> None:
    """With many observations the prior, worth one, fades: an error of order 1/n."""
    points = [WithinPoint(k, within(scale, ratio * scale, k), observations=1e6) for k in (2, 4, 16)]
    fitted = fit_within(points)
    assert fitted is not None
    assert fitted[0] == pytest.approx(scale, rel=1e-3)
    assert fitted[1] == pytest.approx(ratio * scale, rel=1e-3, abs=2e-3 * scale)


def test_one_number_of_draws_leaves_the_shape_to_the_prior() -> None:
    fitted = fit_within([WithinPoint(4, within(3.0, 4.2, 4), observations=7)])
    assert fitted == pytest.approx((3.0, 4.2), rel=1e-9)


def test_the_prior_bends_few_observations() -> None:
    """Two observations that would say b = 0: b stays between that and 1.4 a."""
    fitted = fit_within([WithinPoint(2, 0.5), WithinPoint(8, 0.125)])
    assert fitted is not None
    assert 0.0 < fitted[1] / fitted[0] < 1.4


def test_independent_draws_have_no_excess() -> None:
    fitted = fit_within([WithinPoint(1, 2.2), WithinPoint(4, 0.45)], INDEPENDENT)
    assert fitted == pytest.approx((2.0, 0.0))


def test_noise_that_points_the_wrong_way_falls_back_on_the_prior() -> None:
    """K·W(K) that rises with K, or that ends below zero."""
    loose = WithinShape(1.4, 100.0, 1.0)
    for points in (
        [WithinPoint(2, 0.1, 1e3), WithinPoint(8, 1.0, 1e3)],
        [WithinPoint(2, 1.0, 1e3), WithinPoint(8, 0.01, 1e3)],
    ):
        fitted = fit_within(points, loose)
        assert fitted is not None
        assert fitted[0] > 0
        assert fitted[1] == pytest.approx(1.4 * fitted[0])


def test_nothing_to_fit() -> None:
    assert fit_within([]) is None
    assert fit_within([WithinPoint(4, 0.0)]) is None
    assert fit_within([WithinPoint(4, 1.0, observations=0.0)]) is None


def test_the_fit_has_no_bias_to_speak_of() -> None:
    """Ten observations each at K = 2 and 4, with a relative spread of 1/2: over 400 repeats W(8)
    is right on average to 3 %. (Standard error of the mean: 0.5/√20/√400 = 0.6 %.)"""
    rng = np.random.default_rng(3)
    predicted = []
    for _ in range(400):
        points = [
            WithinPoint(k, within(1.0, 1.4, k) * rng.gamma(4.0, 0.25, size=10).mean(), 10)
            for k in (2, 4)
        ]
        fitted = fit_within(points, COUPLED)
        assert fitted is not None
        predicted.append(within(*fitted, 8))
    assert np.mean(predicted) == pytest.approx(within(1.0, 1.4, 8), rel=0.03)
