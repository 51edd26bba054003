"""What a folder that ``carv demo`` wrote must hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

__all__ = ["check_metrics", "check_pictures", "check_report"]

_LOOK = {"compute_seconds", "iterations", "probability", "accuracy", "margin"}
_FINAL = _LOOK | {"upstream_seconds", "denoise_seconds", "overhead_seconds"}
_RUN = {
    "seed", "iterations", "compute_seconds", "upstream_seconds", "denoise_seconds",
    "overhead_seconds", "per_iteration", "looks",
}  # fmt: skip
_POINT = {"method", "draws", "within", "compute", "standard_error", "total"}


def check_metrics(folder: Path, *, seeds: int, looks: int) -> dict[str, Any]:
    """``metrics.json`` is strict JSON, complete, and agrees with itself; returned."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    assert set(metrics) == {
        "prompt", "command", "teacher", "machine", "seeds", "budget_seconds",
        "common_compute_seconds", "settings", "held_out_views", "classifier_prompts", "methods",
        "carv_share_of_compute_to_reach_baseline", "variance", "wall_seconds",
    }  # fmt: skip
    assert metrics["seeds"] == seeds
    assert metrics["classifier_prompts"][0] == metrics["prompt"]
    assert set(metrics["teacher"]) == {"id", "digest", "device"}
    assert set(metrics["methods"]) == {"baseline", "carv"}
    assert set(metrics["carv_share_of_compute_to_reach_baseline"]) == {"probability", "margin"}
    spent: list[float] = []
    for method in metrics["methods"].values():
        assert set(method) == {"label", "draws", "sampling", "runs", "final"}
        assert set(method["final"]) == _FINAL
        assert [run["seed"] for run in method["runs"]] == list(range(seeds))
        for run in method["runs"]:
            assert set(run) == _RUN and len(run["looks"]) == looks
            assert all(set(look) == _LOOK for look in run["looks"])
            assert run["looks"][0]["compute_seconds"] == 0.0
            assert run["looks"][-1]["compute_seconds"] == run["compute_seconds"]
            assert (
                abs(run["upstream_seconds"] + run["denoise_seconds"] - run["compute_seconds"])
                < 1e-6
            )
            assert all(0 <= look["probability"] <= 1 for look in run["looks"])
            spent.append(run["compute_seconds"])
    assert metrics["common_compute_seconds"] == min(spent)
    variance = metrics["variance"]
    assert set(variance) == {"cameras", "between_cameras", "upstream_seconds", "points"}
    assert {point["method"] for point in variance["points"]} == {"uniform", "carv"}
    for point in variance["points"]:
        assert set(point) == _POINT
        assert point["total"] == variance["between_cameras"] + point["within"]
    return metrics


def check_pictures(folder: Path) -> None:
    """Every picture opens and shows something; turntables have frames enough to turn."""
    for path in folder.glob("*.gif"):
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) >= 24
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        assert all(_contrast(frame) > 20 for frame in frames)
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200 and _contrast(image.convert("RGB")) > 100


def _contrast(image: Image.Image) -> int:
    low, high = image.convert("L").getextrema()
    assert isinstance(low, int) and isinstance(high, int)
    return high - low


def check_report(folder: Path) -> str:
    """Everything that ``report.html`` refers to is there and not empty; the page is returned."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    names = re.findall(r"(?:src|href)='([^']+)'", page)
    assert {"turntable.gif", "convergence.png", "variance.png", "metrics.json"} <= set(names)
    for name in names:
        assert (folder / name).stat().st_size > 0, name
    assert "None" not in page and "nan" not in page
    return page
