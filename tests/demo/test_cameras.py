"""Cameras and view words equal those that the teacher was trained with."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from carv_server.demo.cameras import View, camera_rays, random_views, ring
from carv_server.demo.convention import Convention


@pytest.mark.parametrize("azimuth", [0.0, 37.0, 90.0, 200.0, 315.0])
@pytest.mark.parametrize("elevation", [-5.0, 0.0, 30.0, 75.0])
def test_cameras_and_rays_equal_the_datasets(
    dataset: ModuleType, convention: Convention, azimuth: float, elevation: float
) -> None:
    view = View(azimuth, elevation, 2.9)
    matrix = dataset.orbit_camera(azimuth, elevation, 2.9)
    own = torch.from_numpy(view.to_matrix()).float()
    torch.testing.assert_close(own, matrix, rtol=0, atol=1e-6)
    origin, direction = camera_rays(view, 16, convention.fov)
    expected_origin, expected = dataset.camera_rays(matrix, 16)
    torch.testing.assert_close(origin, expected_origin, rtol=0, atol=1e-6)
    torch.testing.assert_close(direction, expected.view(-1, 3), rtol=0, atol=1e-6)


def test_view_words_equal_the_datasets(dataset: ModuleType, convention: Convention) -> None:
    for azimuth in np.arange(-360.0, 720.0, 7.5):
        for elevation in (-5.0, 30.0, 60.0, 60.5, 75.0):
            expected = dataset.view_word(float(azimuth), elevation)
            assert convention.view_word(float(azimuth), elevation) == expected


def test_random_views_stay_in_the_teachers_range(convention: Convention) -> None:
    source = random_views(np.random.default_rng(0), convention.elevation, convention.distances)
    views = [next(source) for _ in range(400)]
    low, high = convention.elevation
    assert all(low <= view.elevation <= high for view in views)
    near, far = convention.distances
    assert all(near <= view.distance <= far for view in views)
    quadrants = np.bincount([int(view.azimuth // 90) for view in views], minlength=4)
    assert quadrants.min() > 70  # 100 expected, standard deviation 8.7


def test_ring_is_even() -> None:
    assert [view.azimuth for view in ring(4, 10.0, 3.0, offset=45.0)] == [45.0, 135.0, 225.0, 315.0]
