"""The demo's experiment: runs at equal measured compute, their scores, and the variance study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from carv_server.demo.cameras import View, random_views
from carv_server.demo.convention import Convention
from carv_server.demo.curves import Band, band, compute_to_reach
from carv_server.demo.optimise import Run, Studio, optimise
from carv_server.demo.progress import Progress
from carv_server.demo.score import Classifier, Score
from carv_server.demo.settings import BASELINE, CARV, Method, Settings
from carv_server.demo.variance import VarianceStudy, measure_variance

__all__ = ["Experiment", "Plan", "Scored", "compare", "held_out_views"]

METHODS = (BASELINE, CARV)
_WARM_UP_SECONDS = 1.0
_LOOK_SECONDS = 1.0  # expected cost of scoring one look, for the progress bar
_CAMERA_SECONDS = 0.12  # and of one camera, method and K of the variance study


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seeds: int
    """Runs of each method."""
    settings: Settings
    variance_cameras: int
    variance_draws: tuple[int, ...]
    """K of the variance study."""

    def seconds(self) -> float:
        """Expected wall time, for the progress bar."""
        runs = 2 * self.seeds
        looks = runs * self.settings.checkpoints * _LOOK_SECONDS
        cameras = 2 * self.variance_cameras * len(self.variance_draws) * _CAMERA_SECONDS
        return 2 * _WARM_UP_SECONDS + runs * self.settings.budget + looks + cameras


@dataclass(frozen=True)
class Scored:
    """A run, and the score of each of its looks."""

    run: Run
    scores: list[Score]


@dataclass(frozen=True)
class Experiment:
    """Everything that was measured."""

    views: list[View]
    """Held out."""
    prompts: list[str]
    """Of the classifier, the right one first."""
    runs: dict[str, list[Scored]]
    """By method name, in the order of seeds."""
    variance: VarianceStudy
    variance_labels: dict[str, str]

    @property
    def common_compute(self) -> float:
        """Seconds that every run has spent: the least that any has."""
        return min(each.run.meter.spent for group in self.runs.values() for each in group)

    def curve(self, method: str, score: str) -> Band:
        """A score (a field of Score) of one method against compute, over seeds, up to
        ``common_compute``."""
        runs = self.runs[method]
        return band(
            [[look.compute for look in each.run.looks] for each in runs],
            [[getattr(value, score) for value in each.scores] for each in runs],
            self.common_compute,
        )

    def saving(self, score: str) -> float | None:
        """Share of the common compute at which CARV's mean reaches the baseline's last; None:
        never."""
        baseline, carv = self.curve(BASELINE.name, score), self.curve(CARV.name, score)
        seconds = compute_to_reach(carv, float(baseline.mean[-1]))
        return None if seconds is None else seconds / float(baseline.compute[-1])


def held_out_views(convention: Convention, count: int = 6) -> list[View]:
    """Fixed views all around, low, middle and from above; no run ever optimises them exactly."""
    low, high = convention.elevation
    heights = (low + 0.25 * (high - low), low + 0.55 * (high - low), low + 0.9 * (high - low))
    return [
        View(15.0 + 360.0 * i / count, heights[i % len(heights)], convention.distance)
        for i in range(count)
    ]


def compare(studio: Studio, plan: Plan, progress: Progress) -> Experiment:
    """Runs both methods on every seed, scores them, and measures variances.

    Methods take turns within a seed, so that a machine that slows down slows both.
    """
    views = held_out_views(studio.convention)
    progress.stage("warming up")
    for method in METHODS:
        short = replace(plan.settings, budget=_WARM_UP_SECONDS, checkpoints=2)
        # A seed of its own, and so a history: no measured run starts warm.
        optimise(studio, method, plan.seeds, short, views[:1], progress.advance)
    finished: dict[str, list[Run]] = {method.name: [] for method in METHODS}
    for seed in range(plan.seeds):
        for method in METHODS:
            progress.stage(f"seed {seed + 1} of {plan.seeds}: {method.label}")
            run = optimise(studio, method, seed, plan.settings, views, progress.advance)
            finished[method.name].append(run)
    progress.stage("scoring held-out views")
    classifier = Classifier(studio, views)
    runs = {
        name: [_scored(classifier, run, progress) for run in group]
        for name, group in finished.items()
    }
    progress.stage("measuring variance")
    study, labels = _variance(studio, plan, finished[BASELINE.name][0], progress)
    return Experiment(views, classifier.prompts, runs, study, labels)


def _scored(classifier: Classifier, run: Run, progress: Progress) -> Scored:
    scores: list[Score] = []
    for look in run.looks:
        scores.append(classifier.score(look.latents.numpy()))
        progress.advance(_LOOK_SECONDS)
    return Scored(run, scores)


def _variance(
    studio: Studio, plan: Plan, run: Run, progress: Progress
) -> tuple[VarianceStudy, dict[str, str]]:
    """Uniform iid draws and CARV at every K, at the baseline's field of half the budget."""
    uniform = replace(BASELINE, name="uniform", label="uniform, independent draws")
    carv = replace(CARV, label="CARV")
    methods: list[Method] = [
        kind.with_draws(draws) for kind in (uniform, carv) for draws in plan.variance_draws
    ]
    convention = studio.convention
    source = random_views(np.random.default_rng(77), convention.elevation, convention.distances)
    cameras: Sequence[View] = [next(source) for _ in range(plan.variance_cameras)]
    total = _CAMERA_SECONDS * len(cameras) * len(methods)
    study = measure_variance(
        studio, run.halfway, cameras, methods, plan.settings,
        lambda part: progress.advance(part * total),
    )  # fmt: skip
    return study, {kind.name: kind.label for kind in (uniform, carv)}
