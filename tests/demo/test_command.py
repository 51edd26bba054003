"""``carv demo`` before and around the work: arguments, prompts, exit codes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from carv_client import UnavailableError
from carv_server import cli
from carv_server.demo import run as demo_run
from carv_server.demo.convention import embedded_folder, read_convention
from carv_server.demo.process import ServerFailed


@pytest.fixture
def demos(monkeypatch: pytest.MonkeyPatch) -> list[demo_run.Demo]:
    """The demos that would have run."""
    started: list[demo_run.Demo] = []

    def run(demo: demo_run.Demo) -> dict[str, Any]:
        started.append(demo)
        final = {"iterations": 10, "compute_seconds": 1.0, "probability": 0.5}
        return {"methods": {"carv": {"label": "CARV", "final": final}}, "wall_seconds": 2.0}

    monkeypatch.setattr(demo_run, "run_demo", run)
    return started


def demo(tmp_path: Path, *arguments: str) -> int:
    return cli.main(["demo", "--output", str(tmp_path / "out"), *arguments])


def test_unknown_words_are_told_with_the_known_ones(
    tmp_path: Path, demos: list[demo_run.Demo], capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(tmp_path, "--prompt", "a red teapot") == 2
    error = capsys.readouterr().err
    assert error.startswith("carv demo: unknown word 'teapot'; this teacher knows: ")
    convention = read_convention(embedded_folder())
    known = error.split("knows:")[1].split()
    assert {*convention.shapes, *convention.colours} <= set(known)
    assert not demos and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prompt", "said"), [("red", "names no shape"), ("a torus, side view", "names a view")]
)
def test_prompts_that_cannot_be_built(
    tmp_path: Path, prompt: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(tmp_path, "--prompt", prompt) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seeds", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_counts_must_be_whole_and_positive(
    tmp_path: Path, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        demo(tmp_path, f"{flag}={value}")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {flag}: {value!r} is not a whole number above 0" in error


@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "soon"])
def test_the_budget_must_be_finite_and_positive(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        demo(tmp_path, f"--budget-seconds={value}")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"argument --budget-seconds: {value!r} is not a number of seconds above 0" in error


def test_an_output_that_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert demo(tmp_path) == 2
    assert f"cannot write to {tmp_path / 'out'}" in capsys.readouterr().err


def test_arguments_reach_the_demo(
    tmp_path: Path, demos: list[demo_run.Demo], capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    given = ["--prompt", " A blue  CONE", "--seeds", "2", "--budget-seconds", "7.5"]
    assert demo(tmp_path, *given, "--threads", "2") == 0
    (made,) = demos
    assert (made.prompt, made.plan.seeds, made.threads) == ("a blue cone", 2, 2)
    assert made.plan.settings.budget == 7.5 and made.output == tmp_path / "out"
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"wrote {tmp_path / 'out' / 'report.html'} in 2 s" in capsys.readouterr().out


def test_quick_is_smaller_in_every_way(tmp_path: Path, demos: list[demo_run.Demo]) -> None:
    assert demo(tmp_path) == demo(tmp_path, "--quick") == 0
    full, quick = (each.plan for each in demos)
    assert full.seeds >= 3 and quick.seeds == 1
    assert quick.seconds() < full.seconds() / 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ServerFailed("no server; the end of log"), "carv demo: no server; the end of log"),
        (UnavailableError("gone"), "carv demo: the server failed: "),
    ],
)
def test_a_failed_server_is_exit_code_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    def fail(demo: demo_run.Demo) -> NoReturn:
        raise error

    monkeypatch.setattr(demo_run, "run_demo", fail)
    assert demo(tmp_path) == 1
    assert said in capsys.readouterr().err
