"""The saving and its curves on runs whose scores are known functions of compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from carv_server.bench.convergence_curves import (
    Trace,
    common_end,
    pooled,
    saving,
    saving_interval,
    settled,
)
from carv_server.demo.settings import BASELINE, CARV

LOOKS = np.linspace(0.0, 10.0, 11)


def traces(rate: float, noise: float = 0.0, seeds: int = 4) -> list[Trace]:
    """Baseline score x / 10, CARV rate x / 10 at x seconds, with an offset by seed."""
    offsets = np.random.default_rng(2).normal(scale=noise, size=(2, seeds))
    made: list[Trace] = []
    for row, (method, slope) in enumerate(((BASELINE.name, 1.0), (CARV.name, rate))):
        for seed in range(seeds):
            score = slope * LOOKS / 10 + offsets[row, seed]
            made.append(Trace("p", method, seed, LOOKS.tolist(), {"s": score.tolist()}, 10))
    return made


@pytest.mark.parametrize(("rate", "share"), [(1.0, 1.0), (2.0, 0.5), (4.0, 0.25)])
def test_saving_is_where_the_curve_meets_the_baselines_end(rate: float, share: float) -> None:
    assert saving(traces(rate), "s") == pytest.approx(share)


def test_a_curve_that_never_gets_there_saves_nothing() -> None:
    assert saving(traces(0.9), "s") == float("inf")


def test_the_band_is_the_standard_error_over_runs_of_different_lengths() -> None:
    runs = traces(1.0, noise=0.1)
    longer = [replace(t, compute=[1.5 * x for x in t.compute]) for t in runs[:2]]
    mixed = [*longer, *runs[2:]]
    assert common_end(mixed) == 10.0
    curve = pooled(runs, BASELINE.name, "s", common_end(runs))
    own = [t.scores["s"][3] for t in runs if t.method == BASELINE.name]
    assert curve.mean[3] == pytest.approx(np.mean(own))
    assert curve.error[3] == pytest.approx(np.std(own, ddof=1) / 2)


def test_the_interval_holds_the_saving_and_shrinks_to_it_without_noise() -> None:
    low, high = saving_interval(traces(2.0), "s", np.random.default_rng(0))
    assert (low, high) == pytest.approx((0.5, 0.5))
    noisy = traces(2.0, noise=0.05, seeds=8)
    low, high = saving_interval(noisy, "s", np.random.default_rng(0))
    assert low < saving(noisy, "s") < high


def test_settled_is_where_the_baselines_own_curve_ends_to_rise() -> None:
    flat = np.minimum(LOOKS / 4, 1.0)
    runs = [replace(t, scores={"s": flat.tolist()}) for t in traces(1.0)]
    assert settled(runs, "s") == pytest.approx(0.4)
    assert settled(traces(1.0), "s") == pytest.approx(1.0)
    # Within its error a noisy baseline settles earlier.
    assert settled(traces(1.0, noise=0.1), "s") < 1.0
