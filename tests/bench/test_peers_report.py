"""What is written of the peers' benchmark: tables, targets, notes and the page."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from carv_server.bench.load.bare import Forwards
from carv_server.bench.load.book import Book
from carv_server.bench.peers.registry import (
    CARV_ESTIMATE,
    CARV_PREDICT,
    CARV_STREAM,
    GRPC_ALONE,
    GRPC_WAYS,
    PEERS,
)
from carv_server.bench.peers.report import write_document, write_results
from carv_server.bench.peers.rounds import Lap, Reading
from carv_server.bench.peers.workload import Workload
from carv_server.bench.tables import Origin
from tests.bench.test_outputs import check_picture

ORIGIN = Origin("carv bench peers", "a machine", "2026-11-26")


def reading(name: str, number: int, clients: int, rate: float) -> Reading:
    return Reading("simulated", name, number, clients, rate, 500.0, 1e-3, 2e-4, 0.01, 0.02, 0.25, 0)


def lap() -> Lap:
    made = Lap(bare={"simulated": [Forwards(8, 500.0), Forwards(8, 500.0)]})
    for number in range(2):
        for clients in (1, 4, 16):
            for name, rate in (
                (CARV_ESTIMATE, 490.0),
                (CARV_PREDICT, 495.0),
                (CARV_STREAM, 497.0),
                (GRPC_WAYS[0], 420.0),
                (GRPC_WAYS[1], 498.0),
                ("mosec 0.9.8", 350.0),
            ):
                made.readings.append(reading(name, number, clients, rate + number))
    made.left_out["simulated", "BentoML 1.4.40"] = "no answer after 120 s: a | b"
    return made


def test_results_of_made_up_numbers(workload: Workload, tmp_path: Path) -> None:
    book = Book("peers", tmp_path, ORIGIN)
    peers = [peer for peer in PEERS if peer.id in ("mosec", "bentoml")]
    write_results(book, lap(), [workload], peers)
    lines = (tmp_path / "peers_simulated.csv").read_text().splitlines()
    rows = {r["server"]: r for r in csv.DictReader(x for x in lines if not x.startswith("#"))}
    ours = rows[CARV_ESTIMATE]
    assert float(ours["16"]) == pytest.approx(490.5 / 500)
    assert float(ours["16 error"]) == pytest.approx(0.5 / 500)  # half the spread of two rounds
    assert (
        float(rows["mosec 0.9.8"]["CPU, ms"]) == 1.0 and rows["mosec 0.9.8"]["window, ms"] == "2.0"
    )
    assert rows["BentoML 1.4.40"]["interface"] == "left out"
    assert "a / b" in rows["BentoML 1.4.40"]["failed"]
    assert rows["gRPC alone"]["interface"] == GRPC_ALONE.interface
    verdicts = {target.claim: target for target in book.targets}
    assert len(verdicts) == 4 and all(target.met for target in verdicts.values())
    leads = {claim: t.measured for claim, t in verdicts.items() if "1.3 times" in claim}
    least, on_open_calls = leads.values()
    assert least.startswith(f"{490.5 / 350.5:.3f}")
    assert on_open_calls.startswith(f"{497.5 / 350.5:.3f}")
    assert "on open calls" in list(leads)[1]
    check_picture(tmp_path / "peers_simulated.png")
    every = (tmp_path / "peers_rounds.csv").read_text().splitlines()
    assert len([line for line in every if line.startswith("simulated,")]) == 36
    foreign, *limits = book.notes
    assert foreign == (
        "Other work on the machine took 0.25 cores on average over the windows, at most 0.25."
    )
    assert [note.split(" times")[0].split(" ± ")[0] for note in limits] == [
        f"simulated, 4 clients: gRPC alone reaches {420.5 / 350.5:.3f}",
        f"simulated, 4 clients: gRPC alone, open calls reaches {498.5 / 350.5:.3f}",
    ]
    assert f"{CARV_PREDICT} {495.5 / 420.5:.3f}" in limits[0]
    assert f"{CARV_STREAM}, which also draws and reduces, {497.5 / 498.5:.3f}" in limits[1]
    book.write_summary(60.0, finished=False)
    assert "Broken off" in (tmp_path / "summary.md").read_text()
    documents = tmp_path / "docs"
    write_document(book, documents, [workload])
    page = (documents / "peers.md").read_text()
    assert "images/peers_peers_simulated.png" in page and "| mosec 0.9.8 |" in page
    assert ORIGIN.line() in page and (documents / "data/peers/peers_rounds.csv").is_file()


def test_a_target_that_is_missed(workload: Workload, tmp_path: Path) -> None:
    slower = lap()
    slower.readings = [
        replace(r, rate=400.0) if r.contender == CARV_PREDICT else r for r in slower.readings
    ]
    book = Book("peers", tmp_path, ORIGIN)
    write_results(book, slower, [workload], PEERS[:1])
    missed = [target.claim for target in book.targets if not target.met]
    assert len(missed) == 2 and "0.97" in missed[0] and "1.3 times" in missed[1]


def test_nothing_measured_is_no_failure(workload: Workload, tmp_path: Path) -> None:
    book = Book("peers", tmp_path, ORIGIN)
    write_results(book, Lap(), [workload], PEERS)
    assert not book.targets and (tmp_path / "peers_rounds.csv").is_file()
