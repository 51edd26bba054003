"""``carv teachers`` and ``carv estimate``: output, files and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from carv_client import TeacherClient
from carv_client.commands import OK, REFUSED, UNAVAILABLE, USAGE, main


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    path = tmp_path / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32))
    return path


def test_teachers(analytic_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "--address", analytic_server]) == OK
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["teacher", "family", "event_shape"]
    assert row.split()[:3] == ["mixture", "analytic", "2x4x4"]
    assert "3 classes, unconditional" in row
    assert main(["teachers", "--json", "--address", analytic_server]) == OK
    (teacher,) = json.loads(capsys.readouterr().out)
    assert teacher["teacher"] == "mixture"


def test_estimate_writes_the_gradient_that_the_client_gets(
    analytic_server: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--class-id", "1", "--draws", "4", "--seed", "9", "--sampler", "stratified"]
    assert main(["estimate", str(latents), "--address", analytic_server, *arguments]) == OK
    out = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (out["seed"], out["sampler"], out["draws"], out["evaluations"]) == (
        "9", "stratified", "8", "16",
    )  # fmt: skip
    written = np.load(latents.with_name("latents.gradient.npy"))
    assert out["output"] == str(latents.with_name("latents.gradient.npy"))
    with TeacherClient(analytic_server) as client:
        estimate = client.estimate_gradient(
            np.load(latents),
            client.create_conditioning(class_id=1),
            draws=4,
            seed=9,
            sampler="stratified",
        )
    np.testing.assert_allclose(written, estimate.gradient, rtol=1e-5, atol=1e-6)


def test_estimate_as_json_to_a_file_of_ones_own(
    analytic_server: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = latents.with_name("out")  # no .npy is added to it
    arguments = ["--json", "--output", str(output), "--address", analytic_server]
    assert main(["estimate", str(latents), *arguments]) == OK
    told = json.loads(capsys.readouterr().out)
    norms = np.linalg.norm(np.load(output).reshape(2, -1), axis=1)
    np.testing.assert_allclose(told["gradient_norm"], norms, rtol=1e-6)
    assert told["evaluations"] == 2 * 8, "without a conditioning there is one branch"


def test_a_refusal_is_told_with_its_fields(
    analytic_server: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = ["--address", analytic_server]
    assert main(["estimate", str(latents), "--draws", "0", *address]) == REFUSED
    assert "sampling.draws" in capsys.readouterr().err
    assert main(["estimate", str(latents), "--prompt", "a red torus", *address]) == REFUSED
    assert "class ids, not prompts" in capsys.readouterr().err
    assert main(["estimate", str(latents), "--teacher", "nobody", *address]) == REFUSED
    assert "nobody" in capsys.readouterr().err
    assert not latents.with_name("latents.gradient.npy").exists()


def test_no_server(latents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = ["--address", "127.0.0.1:9", "--timeout", "10"]
    assert main(["teachers", *nobody]) == UNAVAILABLE
    assert main(["estimate", str(latents), *nobody]) == UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("127.0.0.1:9") == 2


def test_bad_input_is_told_before_anything_is_sent(
    tmp_path: Path, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = ["--address", "127.0.0.1:9"]
    text = tmp_path / "text.npy"
    text.write_text("no array")
    archive = tmp_path / "archive.npy"
    with archive.open("wb") as file:
        np.savez(file, a=np.zeros(1))
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{}]), allow_pickle=True)
    for path in (text, archive, pickled, tmp_path / "missing.npy"):
        assert main(["estimate", str(path), *nobody]) == USAGE
        assert str(path) in capsys.readouterr().err
    for path in ("/", ".", ""):  # no names to make that of the output from
        assert main(["estimate", path, *nobody]) == USAGE
        assert f"carv: {Path(path)} cannot be read" in capsys.readouterr().err
    for values in (np.zeros((1, 2), bool), np.array([["text"]])):
        wrong = tmp_path / "wrong.npy"
        np.save(wrong, values)
        for command in (["estimate"], ["profile", "--latents"]):
            assert main([*command, str(wrong), "--teacher", "mixture", *nobody]) == USAGE
            assert "latents: " in capsys.readouterr().err
    assert main(["estimate", str(latents), "--output", str(tmp_path), *nobody]) == USAGE
    assert "it is a folder" in capsys.readouterr().err
    no_folder = str(tmp_path / "missing" / "out.npy")
    assert main(["estimate", str(latents), "--output", no_folder, *nobody]) == USAGE
    assert "not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["estimate"],
        ["estimate", "x.npy", "--sampler", "sobol"],
        ["estimate", "x.npy", "--prompt", "a", "--class-id", "1"],
        ["teachers", "--timeout", "0"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == USAGE
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["teachers"], ["estimate", "x.npy"], ["profile"]])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--address", "", "it is empty; give host:port"),
        ("--address", " ", "it is empty; give host:port"),
        ("--timeout", "abc", "'abc' is not a number of seconds above 0"),
        ("--timeout", "inf", "'inf' is not a number of seconds above 0"),
        ("--timeout", "nan", "'nan' is not a number of seconds above 0"),
    ],
)
def test_how_to_reach_a_server(
    command: list[str], option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, option, value])
    assert caught.value.code == USAGE
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"argument {option}: {said}")


@pytest.mark.parametrize("command", ["teachers", "estimate", "profile"])
def test_help_tells_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "exit codes:" in capsys.readouterr().out
