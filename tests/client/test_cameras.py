"""Views: every one with the right law, sets as spread out as they say, and what that brings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from carv_client.cameras import (
    VIEW_SAMPLERS,
    View,
    ViewRange,
    ViewSampler,
    antithetic_views,
    independent_views,
    stratified_views,
    successive_views,
    view_points,
)

REGION = ViewRange(elevation=(-5.0, 75.0), distance=(2.5, 3.5))
SPHERE = ViewRange(elevation=(-30.0, 80.0), distance=(1.0, 2.0), on_sphere=True)
SAMPLERS: tuple[ViewSampler, ...] = tuple(VIEW_SAMPLERS)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_view_alone_is_uniform(sampler: ViewSampler, count: int) -> None:
    """Kolmogorov-Smirnov at every position of the set and every coordinate, 1500 sets. P(p < 1e-5)
    for each of the 192 tests; seeds are fixed."""
    rng = np.random.default_rng(11)
    points = np.stack([view_points(sampler, count, rng) for _ in range(1500)])
    assert points.shape == (1500, count, 3)
    for position, coordinate in itertools.product(range(count), range(3)):
        test = stats.kstest(points[:, position, coordinate], "uniform")
        assert test.pvalue > 1e-5, (position, coordinate)


@pytest.mark.parametrize("sampler", ["stratified", "stratified_antithetic"])
def test_the_coordinates_of_a_view_are_independent(sampler: ViewSampler) -> None:
    """Rank correlation of any two coordinates of the same view over 4000 sets: |ρ| < 5/√4000."""
    rng = np.random.default_rng(12)
    points = np.stack([view_points(sampler, 4, rng) for _ in range(4000)])
    for position in range(4):
        ranks = np.corrcoef(stats.rankdata(points[:, position], axis=0), rowvar=False)
        assert np.abs(ranks[np.triu_indices(3, 1)]).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("count", [1, 2, 6, 16])
@pytest.mark.parametrize("sampler", ["stratified", "stratified_antithetic"])
def test_there_is_one_view_in_every_stratum(sampler: ViewSampler, count: int) -> None:
    if sampler == "stratified_antithetic" and count % 2:
        count += 1
    for seed in range(20):
        points = view_points(sampler, count, seed)
        for coordinate in (1, 2):
            strata = np.sort((points[:, coordinate] * count).astype(int))
            np.testing.assert_array_equal(strata, np.arange(count))
        # The azimuth's strata start anywhere: at some angle, there is one view in each.
        turns = (points[:, :1] + np.linspace(0, 1 / count, 2001)) % 1.0
        occupied = np.sort((turns * count).astype(int), axis=0)
        assert (occupied == np.arange(count)[:, np.newaxis]).all(axis=0).any()


@pytest.mark.parametrize("region", [REGION, SPHERE])
@pytest.mark.parametrize("stratified", [True, False])
def test_pairs_are_opposite(region: ViewRange, stratified: bool) -> None:
    views = antithetic_views(region, 9, 3, stratified=stratified)
    assert len(views) == 9
    for first, second in zip(views[:8:2], views[1:8:2], strict=True):
        assert (second.azimuth - first.azimuth) % 360 == pytest.approx(180.0)
        assert first.distance + second.distance == pytest.approx(sum(region.distance))
        if region.on_sphere:
            heights = [math.sin(math.radians(view.elevation)) for view in (first, second)]
            ends = [math.sin(math.radians(value)) for value in region.elevation]
            assert sum(heights) == pytest.approx(sum(ends))
        else:
            total = first.elevation + second.elevation
            assert total == pytest.approx(sum(region.elevation))


@pytest.mark.parametrize("region", [REGION, SPHERE])
def test_views_have_the_law_of_their_range(region: ViewRange) -> None:
    """Elevation uniform, or its sine where uniform on the sphere; Kolmogorov-Smirnov, p > 1e-4."""
    views = independent_views(region, 4000, 5)
    low, high = region.elevation
    elevation = np.array([view.elevation for view in views])
    assert low <= elevation.min() <= elevation.max() <= high
    if region.on_sphere:
        elevation = np.sin(np.radians(elevation))
        low, high = np.sin(np.radians([low, high]))
    assert stats.kstest((elevation - low) / (high - low), "uniform").pvalue > 1e-4
    azimuth = np.array([view.azimuth for view in views])
    assert stats.kstest(azimuth / 360, "uniform").pvalue > 1e-4
    near, far = region.distance
    distance = np.array([view.distance for view in views])
    assert stats.kstest((distance - near) / (far - near), "uniform").pvalue > 1e-4


def variance_of_mean(sampler: ViewSampler, count: int, function: str) -> float:
    rng = np.random.default_rng(21)
    points = np.stack([view_points(sampler, count, rng) for _ in range(6000)])
    azimuth, height = 2 * np.pi * points[..., 0], points[..., 1]
    values = {
        "height": height,
        "cosine": np.cos(azimuth),
        "second harmonic": np.cos(2 * azimuth),
        "product": np.cos(azimuth) * (height - 0.5),
    }[function]
    return float(values.mean(axis=1).var())


@pytest.mark.parametrize("count", [2, 4])
def test_variances_of_known_functions(count: int) -> None:
    """Closed forms; a variance from 6000 sets has a relative error of 2 to 3 %.

    Of the height u: 1/(12 n) for independent views, 1/(12 n³) in strata, zero in pairs. Of
    cos(azimuth), odd: zero in pairs. Of cos(2·azimuth), even: pairs are one view twice, so the
    variance is that of n/2 independent ones. Of the product of two odd ones, even together:
    likewise, where pairs are not stratified."""
    tolerance = 0.1
    for function, single in (("height", 1 / 12), ("cosine", 1 / 2), ("product", 1 / 24)):
        value = variance_of_mean("independent", count, function)
        assert value == pytest.approx(single / count, rel=tolerance)
    assert variance_of_mean("stratified", count, "height") == pytest.approx(
        1 / 12 / count**3, rel=tolerance
    )
    for sampler in ("antithetic", "stratified_antithetic"):
        assert variance_of_mean(sampler, count, "height") < 1e-20
        assert variance_of_mean(sampler, count, "cosine") < 1e-20
    for function, single in (("second harmonic", 1 / 2), ("product", 1 / 24)):
        value = variance_of_mean("antithetic", count, function)
        assert value == pytest.approx(single / (count / 2), rel=tolerance)


def test_strata_in_azimuth() -> None:
    """Of cos(azimuth) over n jittered strata: Var = (1/2)(1 − sinc²(1/n))/n, with
    sinc x = sin(πx)/(πx): what is left is the variance within strata. Two halves that always
    started at azimuth 0 would gain nothing."""
    for count in (2, 4, 8):
        expected = 0.5 * (1 - np.sinc(1 / count) ** 2) / count
        value = variance_of_mean("stratified", count, "cosine")
        assert value == pytest.approx(expected, rel=0.1)


def test_successive_views_are_one_set_after_another() -> None:
    def sixth(view: View) -> int:
        return int((view.elevation + 5) / 80 * 6)

    views = list(itertools.islice(successive_views(REGION, 6, 1), 18))
    for start in (0, 6, 12):
        strata = sorted(sixth(view) for view in views[start : start + 6])
        assert strata == list(range(6))
    orders = {tuple(map(sixth, views[start : start + 6])) for start in (0, 6, 12)}
    assert len(orders) == 3, "a fresh order for each cycle"


def test_a_seed_and_a_generator_give_the_same() -> None:
    for count in (3, 4):
        assert stratified_views(REGION, count, 9) == stratified_views(
            REGION, count, np.random.default_rng(9)
        )
    assert stratified_views(REGION, 0, 9) == []
    with pytest.raises(ValueError, match="at least 0"):
        stratified_views(REGION, -1, 9)


def test_the_matrix_looks_at_the_origin() -> None:
    view = View(azimuth=90.0, elevation=30.0, distance=2.0)
    matrix = view.to_matrix()
    rotation, eye = matrix[:3, :3], matrix[:3, 3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(eye, [2 * math.cos(math.radians(30)), 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(-rotation[:, 2], -eye / 2.0, atol=1e-12)
    assert rotation[1, 1] > 0, "+y is up"


def test_successive_views_are_refused_at_the_call() -> None:
    """Not at the first view, and not by an endless search for one."""
    for cycle in (0, -1):
        with pytest.raises(ValueError, match="cycle"):
            successive_views(REGION, cycle, 0)
    with pytest.raises(ValueError, match="stratified_antithetic"):
        successive_views(REGION, 4, 0, "sobol")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("make", [independent_views, stratified_views, antithetic_views])
def test_counts_of_views_are_at_least_zero(make: Callable[..., list[View]]) -> None:
    assert make(REGION, 0, 0) == []
    with pytest.raises(ValueError, match="at least 0"):
        make(REGION, -1, 0)
