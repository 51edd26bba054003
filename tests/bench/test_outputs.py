"""Tables, figures and documents as files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from carv_server.bench.attribution_section import strata_variance_of_pool
from carv_server.bench.cells import Measured
from carv_server.bench.figures import plot_bars, plot_curves
from carv_server.bench.tables import Origin, Table, markdown, write_table

ORIGIN = Origin("carv bench variance --quick", "a machine, 2 cores", "2026-05-21")


def table() -> Table:
    made = Table("name", "A title", "A note.", ("state", "K", "RE"))
    made.add("on", 8, Measured(5.25, 0.125))
    made.add("off", 8, None)
    return made


def test_a_table_is_written_twice_with_its_origin(tmp_path: Path) -> None:
    write_table(table(), tmp_path, ORIGIN)
    lines = (tmp_path / "name.csv").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert any(ORIGIN.line() in line for line in comments)
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert rows[0] == {"state": "on", "K": "8", "RE": "5.25", "RE error": "0.125"}
    assert rows[1]["RE"] == rows[1]["RE error"] == ""
    text = (tmp_path / "name.md").read_text()
    assert "| state | K | RE | ± |" in text and "| on | 8 | 5.25 | 0.12 |" in text
    assert text.startswith("# A title") and text.rstrip().endswith(ORIGIN.line())


def test_rows_have_the_columns_of_their_table() -> None:
    with pytest.raises(ValueError, match="2 cells for 3 columns"):
        table().add("on", 8)
    assert [row["RE"] for row in table().where(state="on")] == [Measured(5.25, 0.125)]
    assert markdown(table()).count("\n") == 3


def check_picture(path: Path) -> None:
    """A picture of sane size that is neither blank nor cropped: a white margin all round."""
    pixels = image.imread(path)[..., :3]
    height, width = pixels.shape[:2]
    assert 300 < height < 2000 and 400 < width < 3000
    assert pixels.std() > 0.05
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all(np.all(edge == 1.0) for edge in edges)


def test_figures_are_pictures(tmp_path: Path) -> None:
    values = [Measured(2.0, 0.1), Measured(3.0, 0.2)]
    plot_bars({"one": {"ours": values, "paper": values}}, "RE", tmp_path / "bars.png")
    curves = {
        "ours|R = 1": ([1.0, 10.0], values, ["1", "2"]),
        "ours|R = 2": ([2.0, 20.0], values, None),
    }
    plot_curves(
        {"left": curves, "right": curves}, "x", "y", tmp_path / "curves.png", log_x=True, log_y=True
    )
    plot_curves(
        {"left": {"paper": ([0, 1], values, None)}}, "", "y", tmp_path / "ticks.png",
        baseline=1.0, ticks=["early", "half noise"], joined=False,
    )  # fmt: skip
    for name in ("bars", "curves", "ticks"):
        check_picture(tmp_path / f"{name}.png")


def test_strata_of_a_pool() -> None:
    """x = s + noise in stratum s of 8: within K = 4 runs of 2 the strata's own variance is 1/4
    (two points at distance 1, divisor n: 20,000 replicates make ddof vanish)."""
    noise = np.random.default_rng(0).normal(size=(20_000, 8, 1))
    pool = np.arange(8.0)[None, :, None] + noise
    assert strata_variance_of_pool(pool, 8) == pytest.approx(1.0 / 8, rel=0.02)
    assert strata_variance_of_pool(pool, 4) == pytest.approx((1.0 + 0.25) / 4, rel=0.02)
    assert strata_variance_of_pool(pool, 1) == pytest.approx(1.0 + 63 / 12, rel=0.02)
