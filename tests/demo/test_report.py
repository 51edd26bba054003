"""Pictures, metrics.json and report.html of an experiment that is made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from carv_server.demo.compute import ComputeMeter
from carv_server.demo.convention import Convention
from carv_server.demo.experiment import METHODS, Experiment, Plan, Scored, held_out_views
from carv_server.demo.field import VoxelField
from carv_server.demo.metrics import Metrics, collect
from carv_server.demo.optimise import Look, Run
from carv_server.demo.report import IMAGES, render_report
from carv_server.demo.run import draw
from carv_server.demo.score import Score
from carv_server.demo.settings import BASELINE, CARV, Method
from carv_server.demo.variance import VariancePoint, VarianceStudy
from tests.demo.fakes import small_settings
from tests.demo.outputs import check_metrics, check_pictures, check_report

PLAN = Plan(seeds=2, settings=small_settings(10.0), variance_cameras=3, variance_draws=(1, 8))


def scored(method: Method, seed: int, spent: float, speed: float) -> Scored:
    """A run of ten iterations whose probability is ``speed`` times its share of the budget."""
    meter = ComputeMeter(10.0, upstream=0.4 * spent, denoise=0.6 * spent, iterations=10)
    shares = [i / 4 for i in range(5)]
    looks = [Look(share * spent, int(10 * share), torch.zeros(1)) for share in shares]
    scores = [Score(speed * share, share, share - 0.5) for share in shares]
    field = VoxelField(PLAN.settings.field)
    with torch.no_grad():  # a field that looks different from each side
        for level in field.levels:
            level.copy_(torch.randn(level.shape, generator=torch.Generator().manual_seed(seed)))
    return Scored(Run(method, seed, field, meter, looks, field), scores)


@pytest.fixture
def experiment(convention: Convention) -> Experiment:
    points = [
        VariancePoint(name, draws, within, 0.01 * draws, 0.1 * within)
        for name, factor in (("uniform", 1.0), ("carv", 0.4))
        for draws, within in ((1, factor), (8, factor / 8))
    ]
    return Experiment(
        views=held_out_views(convention),
        prompts=["a red torus", "a red <cube>"],
        runs={
            BASELINE.name: [scored(BASELINE, seed, 10.0 + seed / 10, 0.5) for seed in range(2)],
            CARV.name: [scored(CARV, seed, 9.8 + seed, 1.0) for seed in range(2)],
        },
        variance=VarianceStudy(points, between=0.3, upstream=0.02, cameras=3),
        variance_labels={"uniform": "uniform, independent draws", "carv": "CARV"},
    )


def gathered(experiment: Experiment) -> Metrics:
    metrics = collect(
        experiment,
        PLAN,
        prompt="a red torus",
        command="carv demo --prompt '<b>'",
        teacher={"id": "shapes", "digest": "0123456789abcdef", "device": "cpu"},
        machine={"cores": 2},
    )
    return metrics | {"wall_seconds": 123.0}


def test_curves_and_savings_end_at_the_common_compute(experiment: Experiment) -> None:
    assert experiment.common_compute == pytest.approx(9.8)
    for method in METHODS:
        curve = experiment.curve(method.name, "probability")
        assert curve.compute[0] == 0.0 and curve.compute[-1] == experiment.common_compute
    # CARV's mean over seeds is 1.0 * s / 2 * (1/9.8 + 1/10.8), the baseline's half as steep.
    baseline = 0.5 * 9.8 / 2 * (1 / 10.0 + 1 / 10.1)
    carv = 9.8 / 2 * (1 / 9.8 + 1 / 10.8)
    assert experiment.saving("probability") == pytest.approx(baseline / carv, rel=1e-3)


def test_no_saving_where_carv_stays_below(experiment: Experiment) -> None:
    worse = {
        BASELINE.name: experiment.runs[CARV.name],
        CARV.name: experiment.runs[BASELINE.name],
    }
    swapped = replace(experiment, runs=worse)
    assert swapped.saving("probability") is None
    page = render_report(gathered(swapped))
    assert "CARV does not reach the baseline's final score" in page and "None" not in page


def test_pictures_report_and_metrics(
    experiment: Experiment, convention: Convention, tmp_path: Path
) -> None:
    draw(experiment, convention, tmp_path, pixels=32)
    metrics = gathered(experiment)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "server.log").write_text("serving")
    (tmp_path / "report.html").write_text(render_report(metrics), encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} > set(IMAGES)
    check_pictures(tmp_path)
    page = check_report(tmp_path)
    for name in IMAGES:
        assert f"src='{name}'" in page
    assert "<b>'" not in page  # what the user typed is escaped
    assert "curves end at 9.80 s" in page
    read = check_metrics(tmp_path, seeds=2, looks=5)
    assert read["methods"]["baseline"]["final"]["compute_seconds"] == pytest.approx(10.05)
    assert read["methods"]["carv"]["final"]["probability"] == 1.0


def test_expected_seconds_add_up_all_parts() -> None:
    more = [
        replace(PLAN, seeds=3),
        replace(PLAN, settings=small_settings(11.0)),
        replace(PLAN, variance_cameras=4),
        replace(PLAN, variance_draws=(1, 4, 8)),
    ]
    assert all(plan.seconds() > PLAN.seconds() for plan in more)
