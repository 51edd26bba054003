"""The benchmark's verdicts on measured numbers."""

from __future__ import annotations

import numpy as np

from carv_server.bench.cells import Measured
from carv_server.bench.headline_section import never_worse


def test_equal_methods_are_rarely_called_worse_and_a_worse_one_always() -> None:
    rng = np.random.default_rng(0)
    error = 0.1
    verdicts = [
        never_worse("", [Measured(1 + error * z, error) for z in rng.standard_normal(24)]).met
        for _ in range(400)
    ]
    assert 0.9 < np.mean(verdicts) < 1.0
    equal = [Measured(1.0, error)] * 23
    assert not never_worse("", [*equal, Measured(0.6, error)]).met
    # One cell alone gets the bar of one cell.
    assert not never_worse("", [Measured(0.8, error)]).met
    assert never_worse("", [*equal, Measured(0.8, error)]).met


def test_the_worst_is_the_one_farthest_below_in_its_own_errors() -> None:
    target = never_worse("", [Measured(0.9, 0.5), Measured(0.95, 0.01), Measured(2.0, 0.1)])
    assert not target.met and "0.95" in target.measured
