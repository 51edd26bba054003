"""Readings to tables, figures, targets and the document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from carv_server.bench.cells import Measured
from carv_server.bench.figures import plot_bars
from carv_server.bench.load.book import Book, Chapter
from carv_server.bench.load.rounds import other_work, over_rounds
from carv_server.bench.peers.registry import (
    CARV_PREDICT,
    CARV_STREAM,
    CARV_WAYS,
    GRPC_ALONE,
    GRPC_WAYS,
    Peer,
)
from carv_server.bench.peers.rounds import Lap, Reading
from carv_server.bench.peers.workload import MAX_BATCH, Workload
from carv_server.bench.tables import Cell, Table
from carv_server.bench.targets import Target

__all__ = ["write_document", "write_results"]

_TARGET_SHARES = {"simulated": 0.97, "network": 0.95}
_TARGET_LEAD = 1.3
_TEXT = (
    "The same denoiser serves one row of 64 KiB a request behind every server; each has its "
    "batching on (at most {rows} rows, the window in the table) and one worker process, and is "
    "asked over loopback by a closed loop of clients, each on a connection of its own, from one "
    "driver process with requests prepared as bytes. Server and driver share the machine; HTTP "
    "costs the driver less than gRPC does. A share of 1 is the bare model's best batched "
    "throughput in a process of its own in the same round. CARV is asked in three ways: "
    "PredictNoise is the peers' very work; EstimateGradient at K = 1 also draws (t, ε), makes the "
    "noise and reduces; StreamGradients asks for the same on a call that stays open, as "
    "``client.submit`` does. gRPC alone is no server for use: it does the peers' work behind "
    "Python's gRPC, which CARV is built on, holds for a batch of all of its callers, and checks, "
    "accounts and shares nothing. Processor time is that of all of a server's processes. "
)


def write_results(
    book: Book, lap: Lap, workloads: Sequence[Workload], peers: Sequence[Peer]
) -> None:
    """Tables, figures and targets of what there is so far."""
    book.targets.clear()
    book.notes[:] = [other_work([reading.foreign_cores for reading in lap.readings])]
    windows: dict[str, Cell] = {
        p.title: 1e3 * p.window_seconds for p in peers if p.format != "json"
    }
    interfaces = {
        **{p.title: p.interface for p in peers},
        **dict.fromkeys(CARV_WAYS, "gRPC, tensors"),
        **dict.fromkeys(GRPC_WAYS, GRPC_ALONE.interface),
    }
    for workload in workloads:
        readings = [r for r in lap.readings if r.workload == workload.id]
        if not readings:
            continue
        table = _shares(workload, readings, lap, interfaces, windows, peers)
        book.write(table)
        panels = {
            f"{clients} client{'s' if clients > 1 else ''}": {
                name: _bars(readings, name, clients) for name in _names(readings)
            }
            for clients in workload.clients
        }
        book.draw(
            table.name,
            f"Throughput as a share of the bare model: {workload.title}; a dot is a round.",
            lambda path, panels=panels: plot_bars(
                panels, "share of the bare model", path, stressed=CARV_WAYS
            ),
        )
        book.targets += _targets(workload, readings)
        book.notes += _limit(workload, readings)
    book.write(_rounds(lap))


def write_document(book: Book, folder: Path, workloads: Sequence[Workload]) -> None:
    """``peers.md``."""
    chapters = [
        Chapter(workload.title[0].upper() + workload.title[1:], "", (f"peers_{workload.id}",))
        for workload in workloads
    ]
    text = _TEXT.format(rows=MAX_BATCH)
    book.write_document(folder, "peers", "CARV and other model servers", text, chapters)


def _names(readings: Sequence[Reading]) -> list[str]:
    return list(dict.fromkeys(reading.contender for reading in readings))


def _values(
    readings: Sequence[Reading], name: str, clients: int, of: Callable[[Reading], float]
) -> list[float]:
    return [of(r) for r in readings if r.contender == name and r.clients == clients]


def _mean(
    readings: Sequence[Reading], name: str, clients: int, of: Callable[[Reading], float]
) -> Measured:
    return over_rounds(_values(readings, name, clients, of))


def _bars(readings: Sequence[Reading], name: str, clients: int) -> list[Measured]:
    """One value a round; the error of each, so that the bar's is the error over rounds."""
    values = _values(readings, name, clients, lambda r: r.share)
    error = over_rounds(values).error * len(values) ** 0.5 if len(values) > 1 else 0.0
    return [Measured(value, error) for value in values] or [Measured(0.0, 0.0)]


def _shares(
    workload: Workload,
    readings: Sequence[Reading],
    lap: Lap,
    interfaces: dict[str, str],
    windows: dict[str, Cell],
    peers: Sequence[Peer],
) -> Table:
    most = max(workload.clients)
    bare = over_rounds([each.rows_per_second for each in lap.bare[workload.id]])
    size = lap.bare[workload.id][-1].size
    table = Table(
        f"peers_{workload.id}",
        f"Share of the bare model's throughput: {workload.title}",
        f"Columns headed by a number are shares at so many clients; processor milliseconds of "
        f"the server a request and latencies are those at {most}. The bare model's best: "
        f"{bare.value:.4g} rows a second at {size} a batch. Failed counts requests of all rounds.",
        (
            *("server", "interface", "window, ms"),
            *(str(clients) for clients in sorted(workload.clients, reverse=True)),
            *("CPU, ms", "median, ms", "p99, ms", "failed"),
        ),
    )
    for name in _names(readings):
        shares = [
            _share(readings, name, clients) for clients in sorted(workload.clients, reverse=True)
        ]
        failed = sum(r.failures for r in readings if r.contender == name)
        said = next((r.failure for r in readings if r.contender == name and r.failures), "")
        table.add(
            name,
            interfaces.get(name, ""),
            windows.get(name),
            *shares,
            _mean(readings, name, most, lambda r: 1e3 * r.cpu),
            _mean(readings, name, most, lambda r: 1e3 * r.median),
            _mean(readings, name, most, lambda r: 1e3 * r.tail),
            f"{failed}: {_cell_text(said)}" if failed else 0,
        )
    blank = [None] * (len(workload.clients) + 3)
    for title in ("CARV", GRPC_ALONE.title, *(peer.title for peer in peers)):
        reason = lap.left_out.get((workload.id, title))
        if reason:
            table.add(title, "left out", None, *blank, _cell_text(reason))
    return table


def _cell_text(text: str) -> str:
    """Text that a Markdown table can hold."""
    return text.replace("|", "/")[:300]


def _rounds(lap: Lap) -> Table:
    table = Table(
        "peers_rounds",
        "Every window",
        "One row a window: requests a second, the bare model's rows a second in the same round, "
        "processor milliseconds a request of server and driver, latency in milliseconds, and the "
        "cores that other work took.",
        (
            *("workload", "server", "round", "clients", "rate", "bare", "CPU, ms"),
            *("driver CPU, ms", "median, ms", "p99, ms", "failed", "other cores"),
        ),
    )
    for r in lap.readings:
        table.add(
            *(r.workload, r.contender, r.round + 1, r.clients, r.rate, r.bare, 1e3 * r.cpu),
            *(1e3 * r.client_cpu, 1e3 * r.median, 1e3 * r.tail, r.failures, r.foreign_cores),
        )
    return table


def _targets(workload: Workload, readings: Sequence[Reading]) -> list[Target]:
    """At the most clients: a share of the bare model, and no peer ahead; at four: a lead. By the
    least of the ways that CARV is asked in; the lead also by calls that stay open, which is how
    ``client.submit`` asks."""
    found: list[Target] = []
    most = max(workload.clients)
    ours = [name for name in _names(readings) if name in CARV_WAYS]
    if not ours:
        return found

    def least_share(clients: int) -> Measured:
        return min((_share(readings, name, clients) for name in ours), key=lambda each: each.value)

    least = least_share(most)
    wanted = _TARGET_SHARES[workload.id]
    found.append(
        Target(
            f"{workload.id}, {most} clients: at least {wanted:g} of the bare model",
            _words(least),
            least.value >= wanted,
        )
    )
    if (leader := _best_peer(readings, most)) is not None:
        name, best = leader
        found.append(
            Target(
                f"{workload.id}, {most} clients: ahead of every peer",
                f"{_words(least)} against {_words(best)} of {name}",
                least.value > best.value,
            )
        )
    leader = _best_peer(readings, 4) if 4 in workload.clients else None
    if leader is not None and workload.id == "simulated":
        name, best = leader
        leads = {"": least_share(4)}
        if CARV_STREAM in ours:
            leads[" on open calls"] = _share(readings, CARV_STREAM, 4)
        for asked, own in leads.items():
            lead = own.over(best)
            found.append(
                Target(
                    f"{workload.id}, 4 clients{asked}: at least {_TARGET_LEAD:g} times the best "
                    "peer",
                    f"{_words(lead)} times {name}",
                    lead.value >= _TARGET_LEAD,
                )
            )
    return found


def _share(readings: Sequence[Reading], name: str, clients: int) -> Measured:
    return _mean(readings, name, clients, lambda r: r.share)


def _best_peer(readings: Sequence[Reading], clients: int) -> tuple[str, Measured] | None:
    peers = (name for name in _names(readings) if name not in (*CARV_WAYS, *GRPC_WAYS))
    shares = ((name, _share(readings, name, clients)) for name in peers)
    return max(shares, key=lambda each: each[1].value, default=None)


def _limit(workload: Workload, readings: Sequence[Reading]) -> list[str]:
    """What leads at four clients a front on Python's gRPC may have at most."""
    present = set(_names(readings))
    leader = _best_peer(readings, 4) if 4 in workload.clients else None
    if leader is None:
        return []
    _, best = leader

    def share(name: str) -> Measured:
        return _share(readings, name, 4)

    ways = ((CARV_PREDICT, ""), (CARV_STREAM, ", which also draws and reduces,"))
    pairs = zip(GRPC_WAYS, ways, strict=True)
    return [
        f"{workload.id}, 4 clients: {limit} reaches {_words(share(limit).over(best))} times the "
        f"best peer; {own}{more} {_words(share(own).over(share(limit)))} of that."
        for limit, (own, more) in pairs
        if {limit, own} <= present
    ]


def _words(measured: Measured) -> str:
    if measured.error == measured.error:
        return f"{measured.value:.3f} ± {measured.error:.3f}"
    return f"{measured.value:.3f} (one round)"
