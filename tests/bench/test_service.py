"""``carv bench serving``: arguments, sizes, a signal, and one part against a real server."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from carv_server import cli
from carv_server.bench.arguments import interrupt_once
from carv_server.bench.cells import Measured
from carv_server.bench.load.book import Book
from carv_server.bench.load.flow import Observed
from carv_server.bench.load.measure import Metered
from carv_server.bench.service import arrivals
from carv_server.bench.service import run as service_run
from carv_server.bench.service.desk import Desk, Results, Scale
from carv_server.bench.service.run import PARTS, scale_for
from carv_server.bench.tables import Origin, Table
from carv_server.ending import on_sigterm
from tests.bench.test_outputs import check_picture

ORIGIN = Origin("carv bench serving", "a machine", "2026-11-26")


def bench(tmp_path: Path, *arguments: str) -> int:
    return cli.main(["bench", "serving", "--output", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes=4.9"], "'4.9' is not a number of minutes, 5 or more"),
        (["--minutes=nan"], "'nan' is not a number of minutes"),
        (["--quick", "--minutes", "20"], "not allowed with argument"),
    ],
)
def test_arguments_that_cannot_be_used(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(tmp_path, *arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert bench(tmp_path, "--docs", str(tmp_path / "file")) == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


def test_minutes_buy_longer_windows() -> None:
    quick, full, long = scale_for(None), scale_for(15), scale_for(60)
    assert quick.seconds < full.seconds < long.seconds
    assert quick.rounds < full.rounds
    windows = long.rounds * sum(cells for _, cells in PARTS)
    assert 0.6 * 3600 < windows * (long.seconds + long.warm_seconds) < 3600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_keeps_what_was_finished(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def finished(desk: Desk) -> None:
        table = Table("one", "The first table", "A note.", ("clients",))
        table.add(8)
        desk.book.write(table)

    def interrupted(desk: Desk) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(service_run, "PARTS", ((finished, 1), (interrupted, 1)))
    before = signal.getsignal(signal.SIGTERM)
    # A shell's background job inherits an ignored SIGINT, and Python then leaves it ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert bench(tmp_path, "--quick") == 130
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.rstrip().endswith("interrupted")
    assert (tmp_path / "out" / "one.csv").is_file()
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "Broken off" in summary and "[one](one.md)" in summary


def test_a_second_signal_does_not_break_off_the_writing() -> None:
    """As where a whole group of processes is told, and each passes it on."""
    written = False
    with on_sigterm(interrupt_once):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)
            written = True
    assert written


def test_numbers_over_rounds() -> None:
    """Two windows: 4 requests in 2 s, then 8; a failure in the second."""
    windows = [
        Metered((Observed(2.0, {"a": [0.1] * 4}),), 0.4),
        Metered((Observed(2.0, {"a": [0.3] * 8}, {"BUSY | x": 2}),), 0.4),
    ]
    results = Results({"cell": windows})
    rate = results.over("cell", lambda w: w.first.rate)
    assert rate.value == 3.0 and rate.error == pytest.approx(1.0)
    cpu = results.over("cell", lambda w: w.server_cpu_per_request)
    assert cpu.value == pytest.approx((0.1 + 0.05) / 2)
    assert results.failed("cell") == "2: BUSY / x"


def test_a_part_against_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrivals at a tenth of the load: about as many answers as were offered, none faster than
    its forward, and a table, a figure and a page."""
    monkeypatch.setattr(arrivals, "_LOADS", (0.1,))
    said: list[str] = []
    booked: list[float] = []
    book = Book("serving", tmp_path, ORIGIN)
    desk = Desk(book, Scale(2, 1.0, 0.1), tmp_path, said.append, booked.append)
    arrivals.measure_arrivals(desk)
    (row,) = book.tables["serving_arrivals"].where(load=0.1)
    offered, arrived, median = row["offered a second"], row["arrived a second"], row["median"]
    assert isinstance(offered, float)
    assert isinstance(arrived, Measured) and isinstance(median, Measured)
    assert arrived.value == pytest.approx(offered, abs=5 * (offered / 2) ** 0.5)
    assert median.value >= 7.0 and row["failed"] == "0"
    check_picture(tmp_path / "serving_arrivals.png")
    assert len(booked) == 2 and said[-1] == "arrivals, round 2: load 0.1"
    book.write_document(tmp_path / "docs", "page", "A page", "Text.", service_run._CHAPTERS)
    page = (tmp_path / "docs" / "page.md").read_text()
    assert "images/page_serving_arrivals.png" in page and "## Scheduling" in page
    assert "A network" not in page
