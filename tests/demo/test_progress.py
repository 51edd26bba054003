"""Progress: plain lines where nobody watches, a bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest

from carv_server.demo import progress as module
from carv_server.demo.progress import Progress


def test_lines_name_stages_and_shares(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
    with Progress(10.0) as progress:
        progress.stage("starting")
        progress.advance(2.5)
        progress.stage("drawing")
        progress.advance(2.5)
        progress.advance(50.0)  # more than was expected: never above 100 %
    lines = capsys.readouterr().err.splitlines()
    shares = [int(found[1]) for found in map(re.compile(r"(\d+) %").search, lines) if found]
    assert shares == [0, 25, 25, 50, 100]
    assert [line.split("] ")[1] for line in lines] == ["starting"] * 2 + ["drawing"] * 3


def test_lines_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10.0) as progress:
        progress.stage("optimising")
        for _ in range(1000):
            progress.advance(0.01)
    assert len(capsys.readouterr().err.splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(10.0) as progress:
        progress.stage("optimising")
        progress.advance(5.0)
        progress.advance(9.0)
    shown = terminal.getvalue()
    assert "optimising" in shown and " 50%" in shown and "100%" in shown
