"""``carv bench variance`` before and around the work, and a quick run from end to end."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from carv_server import cli
from carv_server.bench import run as bench_run
from carv_server.bench.sections import SECTION_NAMES, wanted_sections
from carv_server.bench.session import Session
from carv_server.bench.settings import full_scale, quick_scale
from carv_server.bench.tables import Table
from carv_server.bench.targets import Target
from tests.bench.test_outputs import check_picture


def bench(tmp_path: Path, *arguments: str) -> int:
    return cli.main(["bench", "variance", "--output", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize("value", ["0", "4.9", "-1", "nan", "inf", "soon", ""])
def test_minutes_must_be_enough(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(tmp_path, f"--minutes={value}")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"argument --minutes: {value!r} is not a number of minutes, 5 or more" in error


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_threads_must_be_whole_and_positive(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(tmp_path, f"--threads={value}")
    assert caught.value.code == 2
    assert f"{value!r} is not a whole number above 0" in capsys.readouterr().err


def test_quick_and_minutes_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(tmp_path, "--quick", "--minutes", "10")
    assert caught.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--docs"])
def test_a_folder_that_is_a_file(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert bench(tmp_path, flag, str(tmp_path / "file")) == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


def test_minutes_buy_more_of_everything() -> None:
    quick, short, full, long = quick_scale(), full_scale(10), full_scale(35), full_scale(120)
    assert len(short.prompts) < len(full.prompts) < len(long.prompts)
    assert short.effort.most < full.effort.most < long.effort.most
    assert full.effort.target == 0.04 and quick.effort.target == 0.12
    for scale in (quick, short, full, long):
        # A bank's noises fall into equal blocks, and its grid covers the default range.
        assert scale.bank_noises % 8 == 0
        assert scale.bank_grid[0] == 20 and scale.bank_grid[-1] == 980


def test_an_interrupt_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finished(session: Session) -> None:
        table = Table("one", "The first table", "A note.", ("K",))
        table.add(8)
        session.write(table)
        session.targets.append(Target("a claim", "2 ± 1", True))

    def interrupted(session: Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_run, "_prepare", lambda session: None)
    monkeypatch.setattr(bench_run, "SECTIONS", {"grid": finished, "strata": interrupted})
    monkeypatch.setattr(bench_run, "wanted_sections", lambda only: ["grid", "strata"])
    assert bench(tmp_path, "--quick") == 130
    assert capsys.readouterr().err.rstrip().endswith("interrupted")
    assert (tmp_path / "out" / "one.csv").is_file()
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "Broken off" in summary and "[one](one.md)" in summary
    assert "| a claim | 2 ± 1 | met |" in summary


def test_sections_go_alone_with_what_they_need(tmp_path: Path) -> None:
    assert tuple(bench_run.SECTIONS) == SECTION_NAMES == tuple(wanted_sections([]))
    assert wanted_sections(["planning", "breadth"]) == ["breadth", "grid", "planning"]
    assert bench(tmp_path, "--only", "grid", "--docs", str(tmp_path)) == 2


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    """Every table and figure, the documents, and error bars beside every measured column."""
    output, documents = tmp_path / "deep" / "out", tmp_path / "docs"
    command = [sys.executable, "-W", "error", "-m", "carv_server", "bench", "variance", "--quick"]
    done = subprocess.run(
        [*command, "--output", str(output), "--docs", str(documents)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"wrote {output / 'summary.md'}" in done.stdout
    summary = (output / "summary.md").read_text()
    tables = {path.stem for path in output.glob("*.csv")}
    assert {"headline", "headline_summary", "kinds", "draws", "agreement", "proposals"} <= tables
    assert {"grid", "cost_ratios", "strata", "weightings", "control", "attribution"} <= tables
    assert {"planner", "cameras", "refine"} <= tables
    for name in tables:
        assert f"[{name}]({name}.md)" in summary
        lines = (output / f"{name}.csv").read_text().splitlines()
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
        assert rows and any(key.endswith(" error") for key in rows[0])
    page = (documents / "variance.md").read_text()
    for picture in output.glob("*.png"):
        check_picture(picture)
        assert f"images/variance_{picture.name}" in page
        assert (documents / "images" / f"variance_{picture.name}").is_file()
    # What the whole is about, with room for a quick run's errors.
    lines = (output / "headline_summary.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    ours = {row["guidance"]: float(row["mean RE"]) for row in rows if row["estimator"] == "ours"}
    assert all(value > 2.5 for value in ours.values())
