"""Curves over seeds: interpolation, the common end, and the compute to reach a level."""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.demo.curves import Band, band, compute_to_reach


def test_runs_are_interpolated_onto_common_seconds() -> None:
    curve = band([[0.0, 1.0, 4.0], [0.0, 3.0, 4.0]], [[0.0, 1.0, 4.0], [0.0, 6.0, 8.0]], end=4.0)
    assert curve.compute.tolist() == [0.0, 2.0, 4.0]
    assert curve.low.tolist() == [0.0, 2.0, 4.0]  # the first run is score = seconds
    assert curve.high.tolist() == [0.0, 4.0, 8.0]
    assert curve.mean.tolist() == [0.0, 3.0, 6.0]


def test_curves_end_where_every_run_has_been() -> None:
    """Points past the end are cut back to it, at the score interpolated there."""
    curve = band([[0.0, 9.0, 11.0]], [[0.0, 9.0, 11.0]], end=10.0)
    assert curve.compute.tolist() == [0.0, 9.0, 10.0]
    assert curve.mean.tolist() == [0.0, 9.0, 10.0]
    curve = band([[0.0, 10.5, 11.0]], [[0.0, 10.5, 11.0]], end=10.0)
    assert curve.compute.tolist() == curve.mean.tolist() == [0.0, 10.0, 10.0]


def test_a_run_that_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends at 9\.0 s, before 10\.0 s"):
        band([[0.0, 9.0]], [[0.0, 1.0]], end=10.0)


def test_compute_to_reach_a_level() -> None:
    mean = np.array([0.0, 2.0, 1.0, 4.0])
    curve = Band(np.array([0.0, 1.0, 2.0, 3.0]), mean, mean, mean)
    assert compute_to_reach(curve, -1.0) == 0.0
    assert compute_to_reach(curve, 1.0) == 0.5
    assert compute_to_reach(curve, 2.5) == 2.5
    assert compute_to_reach(curve, 4.1) is None
