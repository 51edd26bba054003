"""``carv profile``: table, JSON, plot, progress and exit codes."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from carv_client import TeacherClient, TeacherProfile
from carv_client._progress import ProgressBar, bar
from carv_client.commands import OK, REFUSED, UNAVAILABLE, USAGE, main
from carv_server import cli, profile_plot

NOBODY = ["--address", "127.0.0.1:9", "--timeout", "10"]


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    path = tmp_path / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32))
    return path


def arguments(latents: Path, address: str, *more: str) -> list[str]:
    few = ["--bins", "6", "--draws-per-bin", "4", "--class-id", "1", "--seed", "3"]
    few += ["--history", "profile-command"]  # without a past
    return ["profile", "--latents", str(latents), "--address", address, *few, *more]


def ask(latents: Path, address: str) -> TeacherProfile:
    """What ``arguments`` asks for, through the library."""
    with TeacherClient(address) as client:
        conditioning = client.create_conditioning(class_id=1)
        return client.profile_teacher(
            np.load(latents), conditioning, bins=6, draws_per_bin=4, seed=3
        )


def test_prints_the_bins_and_what_proposals_make_of_them(
    analytic_server: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(latents, analytic_server)) == OK
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    profile = ask(latents, analytic_server)
    assert lines[0].split()[:3] == ["t", "log-SNR", "prior"]
    largest = max(each.second_moment for each in profile.bins)
    for line, each in zip(lines[1:7], profile.bins, strict=True):
        cells = line.split()
        assert cells[0] == f"{each.first_timestep}..{each.last_timestep}"
        assert float(cells[3]) == pytest.approx(each.second_moment**0.5, rel=1e-3)
        filled = line.count("█")
        assert filled == int(24 * (each.second_moment / largest) ** 0.5 + 1 / 16)
    rows = {line.split()[0]: line.split()[1:] for line in lines if line[:6] in ("weight", "oracle")}
    gain = profile.prior_variance / profile.oracle_variance
    assert rows["oracle"] == [f"{profile.oracle_variance:.4g}", f"{gain:.2f}"]
    assert lines[-1].startswith("48 draws, 96 evaluations of ") and lines[-1].endswith("seed 3")
    assert captured.err.splitlines()[-1].startswith("profile: 100%"), "no terminal: plain lines"
    assert "\r" not in captured.err


def test_json_to_standard_output_and_to_a_file_are_one_record(
    analytic_server: str, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "profile.json"
    line = arguments(latents, analytic_server, "--json", "--output", str(output))
    assert main([*line, "--draws-per-bin", "2"]) == OK
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(output.read_text())
    assert len(told["prior"]) == 1000 and told["adaptive"] is None
    assert [each["squared_mean"] for each in told["bins"]] == [None] * 6, "NaN is no JSON"
    assert told["bins"][0]["second_moment"] > 0 and told["seed"] == 3


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plots(analytic_server: str, latents: Path, tmp_path: Path, suffix: str) -> None:
    plot = tmp_path / f"profile.{suffix}"
    assert cli.main(arguments(latents, analytic_server, "--plot", str(plot))) == OK
    data = plot.read_bytes()
    if suffix == "svg":
        assert b"<svg" in data[:1000]
        return
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert 800 <= width <= 2000 and 400 <= height <= 1200
    assert 10_000 < len(data) < 500_000


def test_a_plot_that_cannot_be_drawn_is_refused_before_any_work(
    latents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody answers at the address: the exit code says that nobody was asked."""
    line = ["profile", "--latents", str(latents), *NOBODY, "--plot"]
    assert cli.main([*line, str(tmp_path / "profile.txt")]) == USAGE
    assert ".png, .svg, .pdf" in capsys.readouterr().err
    assert cli.main([*line, str(tmp_path / "missing" / "profile.png")]) == USAGE
    assert "not a folder" in capsys.readouterr().err
    assert main([*line, str(tmp_path / "profile.png")]) == USAGE
    assert "carv[demo]" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main([*line, str(tmp_path / "profile.png")]) == USAGE
    assert "pip install 'carv[demo]'" in capsys.readouterr().err


def test_bad_files_are_told_before_anything_is_sent(
    tmp_path: Path, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *NOBODY]) == USAGE
    assert "[renders, *event shape]" in capsys.readouterr().err
    text = tmp_path / "text.npy"
    text.write_text("no array")
    for path in (text, tmp_path / "missing.npy"):
        assert main(["profile", "--latents", str(path), *NOBODY]) == USAGE
        assert str(path) in capsys.readouterr().err
    nowhere = str(tmp_path / "missing" / "profile.json")
    assert main(["profile", "--latents", str(latents), "--output", nowhere, *NOBODY]) == USAGE
    assert "not a folder" in capsys.readouterr().err
    assert main(["profile", "--latents", str(latents), "--output", str(tmp_path), *NOBODY]) == USAGE
    assert f"{tmp_path} cannot be written: it is a folder" in capsys.readouterr().err


def test_a_full_disk_is_told_after_the_table(
    analytic_server: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no device that is always full")
    assert main(arguments(latents, analytic_server, "--output", str(full))) == USAGE
    captured = capsys.readouterr()
    assert "oracle" in captured.out
    assert "/dev/full cannot be written" in captured.err


def test_refusals_and_absent_servers(
    analytic_server: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(latents, analytic_server, "--bins", "1")) == REFUSED
    assert "bins: 1; must be in 2 .. 64" in capsys.readouterr().err
    assert main(arguments(latents, analytic_server, "--bins", "0")) == USAGE
    assert "bins" in capsys.readouterr().err
    assert main(["profile", "--latents", str(latents), *NOBODY]) == UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.out == "" and "127.0.0.1:9" in captured.err


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.seek(0)
        return self.read()


def test_a_terminal_gets_a_bar_that_clears_itself() -> None:
    stream = Terminal()
    with ProgressBar("profile", stream) as show:
        show(0.5)
    frames = stream.shown().split("\r")
    assert frames[0] == "" and frames[-1] == "\x1b[K"
    assert "█" * 15 + " " * 15 in frames[2] and "50%" in frames[2]


@pytest.mark.parametrize(
    ("share", "encoding", "expected"),
    [
        (0.0, "utf-8", "    "),
        (0.5, "utf-8", "██  "),
        (0.53, "utf-8", "██▏ "),
        (1.0, "utf-8", "████"),
        (1.7, "utf-8", "████"),
        (0.5, "ascii", "##  "),
        (-1.0, "ascii", "    "),
    ],
)
def test_bars_fill_their_share(share: float, encoding: str, expected: str) -> None:
    assert bar(share, 4, Terminal(encoding)) == expected


def test_the_plot_knows_a_past_and_bare_profiles(
    analytic_server: str, latents: Path, tmp_path: Path
) -> None:
    """With an adaptive proposal, and with bins too few for a log-SNR axis or an error."""
    with TeacherClient(analytic_server) as client:
        conditioning = client.create_conditioning(class_id=1)
        x = np.load(latents)
        client.profile_teacher(x, conditioning, history="plot", warm=True)
        warm = client.profile_teacher(x, conditioning, history="plot")
        bare = client.profile_teacher(
            x, conditioning, bins=2, draws_per_bin=2, timestep_range=(0.5, 0.501)
        )
    assert warm.adaptive is not None
    sizes: list[int] = []
    for name, profile in (("warm", warm), ("bare", bare)):
        path = tmp_path / f"{name}.svg"
        profile_plot.plot_profile(profile, path)
        sizes.append(path.stat().st_size)
    assert sizes[0] > sizes[1] > 5000
