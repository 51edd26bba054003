"""Where to stand for the next views: orbit cameras, independent or well spread.

An estimate over R views has the variance (B + W(K))/R where views are independent. Views that
spread out keep every view's own law, so the expectation stays, and lower B:

- *stratified* (a Latin hypercube; McKay, Beckman and Conover 1979): of n views one stands in each
  n-th of the azimuth, and one in each n-th of the elevation and of the distance;
- *antithetic*: views come in pairs, the second opposite in azimuth and mirrored in elevation and
  distance, which cancels what is odd about the middle of the ranges.

All views are uniform in azimuth and distance, and in elevation or on the sphere. Those of one set
depend on each other; sets are independent. A client with one render per step deals a set over
its steps, see ``successive_views``.

World frame: right-handed, +y up, the object at the origin. Azimuth 0 is on the +z axis and grows
towards +x. Angles are in degrees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "VIEW_SAMPLERS",
    "View",
    "ViewRange",
    "ViewSampler",
    "antithetic_views",
    "independent_views",
    "stratified_views",
    "successive_views",
    "view_points",
]

Rng = np.random.Generator | int
"""A generator, or the seed of a new one."""
FloatArray = npt.NDArray[np.float64]
ViewSampler = Literal["independent", "stratified", "antithetic", "stratified_antithetic"]


@dataclass(frozen=True)
class View:
    """Where a camera stands: angles in degrees, distance in world units."""

    azimuth: float
    elevation: float
    distance: float

    def to_matrix(self) -> FloatArray:
        """Camera-to-world matrix [4, 4] of a camera that looks at the origin, +y up; camera frame
        as in OpenGL: x right, y up, looking along −z."""
        azimuth, elevation = math.radians(self.azimuth), math.radians(self.elevation)
        backward = np.array(
            [
                math.cos(elevation) * math.sin(azimuth),
                math.sin(elevation),
                math.cos(elevation) * math.cos(azimuth),
            ]
        )
        right = np.array([math.cos(azimuth), 0.0, -math.sin(azimuth)])
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1] = right, np.cross(backward, right)
        matrix[:3, 2], matrix[:3, 3] = backward, self.distance * backward
        return matrix


@dataclass(frozen=True)
class ViewRange:
    """The views that may be drawn, all around in azimuth."""

    elevation: tuple[float, float] = (0.0, 60.0)
    """Lowest and highest, in degrees."""
    distance: tuple[float, float] = (1.0, 1.0)
    """Nearest and farthest."""
    on_sphere: bool = False
    """Uniform over the area of the sphere between both elevations; else in the elevation itself,
    which looks more often from near the poles."""

    def view(self, azimuth: float, elevation: float, distance: float) -> View:
        """The view at a point of the unit cube; uniform points give the law of the range."""
        low, high = self.elevation
        if self.on_sphere:
            bottom, top = math.sin(math.radians(low)), math.sin(math.radians(high))
            height = math.degrees(math.asin(bottom + (top - bottom) * elevation))
        else:
            height = low + (high - low) * elevation
        near, far = self.distance
        return View(360.0 * azimuth, height, near + (far - near) * distance)


def independent_views(region: ViewRange, count: int, rng: Rng) -> list[View]:
    """``count`` views that know nothing of each other."""
    return _views(region, count, rng, "independent")


def stratified_views(region: ViewRange, count: int, rng: Rng) -> list[View]:
    """``count`` views, one in each ``count``-th of azimuth (counted from a random angle),
    elevation and distance, in random order and uniform within: each alone is a view like any
    other.

    What a sum of functions of one coordinate each adds to the variance of the mean falls as
    count^−3 rather than count^−1; what depends on several together is left at about count^−1.
    """
    return _views(region, count, rng, "stratified")


def antithetic_views(
    region: ViewRange, count: int, rng: Rng, *, stratified: bool = True
) -> list[View]:
    """``count`` views in pairs of neighbours: azimuth + 180°, elevation and distance mirrored in
    the middle of their ranges (of their area, on the sphere). The last of an odd count is alone.

    Cancels what is odd in this reflection, and doubles what is even: it can raise the variance,
    where opposite views of an object are alike. ``stratified`` spreads the pairs so that, for an
    even count, all views together are stratified as in ``stratified_views``.
    """
    return _views(region, count, rng, "stratified_antithetic" if stratified else "antithetic")


def successive_views(
    region: ViewRange, cycle: int, rng: Rng, sampler: ViewSampler = "stratified"
) -> Iterator[View]:
    """Endless views for one render a step: one spread-out set of ``cycle`` after another.

    Every view, seen alone, has the law of the range, so each step's gradient is as unbiased as
    with independent views. Given the views before it in the same cycle it has not: it avoids
    their strata. That dependence is what lowers the variance of a mean over steps (of an Adam
    moment over some 1/(1 − β) steps, say), and it makes the differences of successive gradients
    larger than twice their variance: a planner then finds B somewhat too large.

    Raises:
        ValueError: a cycle below 1, or an unknown sampler; at the call.
    """
    if cycle < 1:
        raise ValueError(f"cycle is {cycle}; at least 1")
    _check_sampler(sampler)
    generator = np.random.default_rng(rng)
    return itertools.chain.from_iterable(
        _views(region, cycle, generator, sampler) for _ in itertools.count()
    )


def view_points(sampler: ViewSampler, count: int, rng: Rng) -> FloatArray:
    """``count`` points of the unit cube, [count, 3]: azimuth, elevation, distance. Each alone is
    uniform.

    Raises:
        ValueError: a negative count, or an unknown sampler.
    """
    if count < 0:
        raise ValueError(f"count is {count}; at least 0")
    _check_sampler(sampler)
    return VIEW_SAMPLERS[sampler](count, np.random.default_rng(rng))


def _check_sampler(sampler: str) -> None:
    if sampler not in VIEW_SAMPLERS:
        raise ValueError(f"{sampler!r} is not known; known: {', '.join(VIEW_SAMPLERS)}")


def _views(region: ViewRange, count: int, rng: Rng, sampler: ViewSampler) -> list[View]:
    return [region.view(*point) for point in view_points(sampler, count, rng).tolist()]


def _independent(count: int, rng: np.random.Generator) -> FloatArray:
    return rng.random((count, 3))


def _stratified(count: int, rng: np.random.Generator) -> FloatArray:
    """A Latin hypercube: in each coordinate one point in every stratum, dealt at random."""
    strata = np.stack([rng.permutation(count) for _ in range(3)], axis=1)
    return _turned((strata + rng.random((count, 3))) / max(1, count), rng)


def _antithetic(count: int, rng: np.random.Generator) -> FloatArray:
    return _pairs(rng.random((-(-count // 2), 3)))[:count]


def _stratified_antithetic(count: int, rng: np.random.Generator) -> FloatArray:
    """The first of n pairs takes one of each two strata that reflect into each other: of the 2n
    in each coordinate, i and i + n in azimuth, i and 2n − 1 − i in the others; side at random."""
    pairs = -(-count // 2)
    strata = np.stack([rng.permutation(pairs) for _ in range(3)], axis=1)
    other = rng.integers(0, 2, size=(pairs, 3), dtype=np.int64) == 1
    reflected = np.stack(
        [strata[:, 0] + pairs, *(2 * pairs - 1 - strata[:, 1:]).T], axis=1
    )  # fmt: skip
    first = np.where(other, reflected, strata) + rng.random((pairs, 3))
    return _turned(_pairs(first / max(1, 2 * pairs))[:count], rng)


def _turned(points: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The strata of the azimuth turned by a random angle: a circle has no first stratum, and two
    fixed halves, left and right of an object, would be alike for many."""
    points[:, 0] = (points[:, 0] + rng.random()) % 1.0
    return points


def _pairs(first: FloatArray) -> FloatArray:
    """Each point, [n, 3], and its reflection behind it: [2n, 3]."""
    azimuth = (first[:, :1] + 0.5) % 1.0
    second = np.concatenate([azimuth, 1.0 - first[:, 1:]], axis=1)
    return np.stack([first, second], axis=1).reshape(-1, 3)


VIEW_SAMPLERS: Mapping[ViewSampler, Callable[[int, np.random.Generator], FloatArray]] = (
    MappingProxyType(
        {
            "independent": _independent,
            "stratified": _stratified,
            "antithetic": _antithetic,
            "stratified_antithetic": _stratified_antithetic,
        }
    )
)
"""Points of the unit cube by name of the sampler."""
