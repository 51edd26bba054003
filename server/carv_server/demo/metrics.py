"""The experiment as plain data: what ``metrics.json`` holds and the report prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from carv_server.demo.experiment import METHODS, Experiment, Plan, Scored

__all__ = ["Metrics", "collect"]

Metrics = dict[str, Any]


def collect(
    experiment: Experiment,
    plan: Plan,
    *,
    prompt: str,
    command: str,
    teacher: Metrics,
    machine: Metrics,
) -> Metrics:
    """All numbers, in seconds where they are times."""
    study = experiment.variance
    return {
        "prompt": prompt,
        "command": command,
        "teacher": teacher,
        "machine": machine,
        "seeds": plan.seeds,
        "budget_seconds": plan.settings.budget,
        "common_compute_seconds": experiment.common_compute,
        "settings": asdict(plan.settings),
        "held_out_views": [asdict(view) for view in experiment.views],
        "classifier_prompts": experiment.prompts,
        "methods": {
            method.name: {
                "label": method.label,
                "draws": method.draws,
                "sampling": dict(method.sampling) or "server default",
                "runs": [_run(scored) for scored in experiment.runs[method.name]],
                "final": _final(experiment.runs[method.name]),
            }
            for method in METHODS
        },
        "carv_share_of_compute_to_reach_baseline": {
            score: experiment.saving(score) for score in ("probability", "margin")
        },
        "variance": {
            "cameras": study.cameras,
            "between_cameras": study.between,
            "upstream_seconds": study.upstream,
            "points": [asdict(point) | {"total": study.total(point)} for point in study.points],
        },
    }


def _run(scored: Scored) -> Metrics:
    run = scored.run
    return {
        "seed": run.seed,
        "iterations": run.meter.iterations,
        "compute_seconds": run.meter.spent,
        "upstream_seconds": run.meter.upstream,
        "denoise_seconds": run.meter.denoise,
        "overhead_seconds": run.meter.overhead,
        "per_iteration": run.meter.per_iteration(),
        "looks": [
            {"compute_seconds": look.compute, "iterations": look.iterations, **asdict(score)}
            for look, score in zip(run.looks, scored.scores, strict=True)
        ],
    }


def _final(runs: list[Scored]) -> Metrics:
    """Means over seeds at the end of the runs."""
    count = len(runs)
    parts = [scored.run.meter.per_iteration() for scored in runs]
    return {
        "iterations": sum(scored.run.meter.iterations for scored in runs) / count,
        "compute_seconds": sum(scored.run.meter.spent for scored in runs) / count,
        **{key: sum(part[key] for part in parts) / count for key in parts[0]},
        **{
            key: sum(getattr(scored.scores[-1], key) for scored in runs) / count
            for key in ("probability", "accuracy", "margin")
        },
    }
