"""A simulated device: how much of it the scheduler uses, apart from this machine's speed."""

from __future__ import annotations

from carv_server.bench.figures import Curve, plot_curves
from carv_server.bench.load.bare import Bare, Forwards
from carv_server.bench.load.folders import DEVICE, write_simulated
from carv_server.bench.load.measure import Metered
from carv_server.bench.load.requests import (
    estimate_payload,
    service_target,
    stream_payload,
    stream_target,
)
from carv_server.bench.service.desk import EVENT_SHAPE, Cell, Desk, Results, latents, so_many
from carv_server.bench.tables import Table
from carv_server.bench.targets import Target

__all__ = ["BUDGET", "CELLS", "measure_scheduling"]

BUDGET = 8
_CLIENTS = (1, 4, 16, 64)
_MIX = {
    "K = 1": (1, 1),
    "K = 4": (1, 4),
    "K = 8": (1, 8),
    "K = 64": (1, 64),
    "R = 16, K = 1 (1 MiB)": (16, 1),
}
_MIX_CELL = "mix, 16 clients"
_ALONE, _STREAM, _BEHIND = "K = 8 alone", "K = 8 alone, stream", "K = 1 behind K = 1,024"
CELLS = len(_CLIENTS) + 4 + 4
"""Windows of a round, the bare model's among them; the mix counts as four."""


def measure_scheduling(desk: Desk) -> None:
    """Closed loops at K = 1, a mix of sizes, one client's latency, and a small request behind a
    large one."""
    folder = write_simulated(desk.folder / "device", EVENT_SHAPE, *DEVICE)
    arguments = ["--teacher", f"sim={folder}", "--evaluation-budget", str(BUDGET)]
    with desk.server("scheduling", arguments) as server:
        handle = desk.handle(server)
        target = service_target(server.address, "EstimateGradient")
        pids = desk.pids(server)

        def payload(renders: int, draws: int) -> bytes:
            return estimate_payload(latents(renders), [handle], [1.0], draws)

        small = {"K = 1": payload(1, 1)}
        cells = [
            Cell(_closed(n), target, small, n, pids, companions=(desk.health(server),))
            for n in _CLIENTS
        ]
        mix = {label: payload(*size) for label, size in _MIX.items()}
        cells.append(
            Cell(_MIX_CELL, target, mix, 16, pids, companions=(desk.health(server),), stretch=4.0)
        )
        alone = payload(1, 8)
        cells.append(Cell(_ALONE, target, {"K = 8": alone}, 1, pids))
        streamed = {"K = 8": stream_payload(alone)}
        cells.append(Cell(_STREAM, stream_target(server.address), streamed, 1, pids))
        large = Cell("K = 1,024", target, {"K = 1,024": payload(1, 1024)}, 1, pids)
        cells.append(Cell(_BEHIND, target, small, 1, pids, companions=(large,)))
        bare = Bare((BUDGET,), desk.scale.seconds, teacher=str(folder))
        results = desk.measure("scheduling", cells, bare)
    _report_shares(desk, results)
    _report_latencies(desk, results)


def _closed(clients: int) -> str:
    return so_many(clients)


def _evaluations(window: Metered) -> float:
    """A second, over the labels of the mix."""
    sizes = {label: renders * draws for label, (renders, draws) in _MIX.items()}
    done = sum(sizes[label] * len(values) for label, values in window.first.latencies.items())
    return done / window.first.seconds


def _share(window: Metered, bare: Forwards) -> float:
    return _evaluations(window) / bare.rows_per_second


def _report_shares(desk: Desk, results: Results) -> None:
    launch, row = DEVICE
    table = Table(
        "serving_scheduling",
        "Share of a simulated device",
        f"{1e3 * launch:g} ms a launch and {1e3 * row:g} ms a row, at most {BUDGET} rows a "
        "microbatch; evaluations a second over those of the bare model at full batches in the "
        f"same round. The device's own ceiling in a closed loop of n < {BUDGET} clients is that "
        "of batches of n. The mix holds equally many requests of K = 1, 4, 8, 64 and of 16 "
        "renders at K = 1.",
        (
            *("load", "share", "CPU, ms a request", "median, ms", "p99, ms"),
            *("health median, ms", "slowest health, ms", "failed"),
        ),
    )
    for name in _probed():
        table.add(
            name,
            results.against_bare(name, _share),
            results.over(name, lambda w: 1e3 * w.server_cpu_per_request),
            results.over(name, lambda w: 1e3 * w.first.quantile(0.5)),
            results.over(name, lambda w: 1e3 * w.first.quantile(0.99)),
            results.over(name, lambda w: 1e3 * w.observed[1].quantile(0.5)),
            max(1e3 * w.observed[1].quantile(1.0) for w in results.windows[name]),
            results.failed(name),
        )
    desk.book.write(table)
    shares = [results.against_bare(_closed(n), _share) for n in _CLIENTS]
    curves: dict[str, Curve] = {"ours": (_CLIENTS, shares, None)}
    desk.book.draw(
        table.name,
        "Share of a simulated device that closed loops of clients reach.",
        lambda path: plot_curves(
            {"one row a request": curves}, "clients", "share of the bare model", path,
            log_x=True, baseline=1.0,
        ),
    )  # fmt: skip
    full = shares[_CLIENTS.index(16)].value
    desk.book.targets.append(
        Target("simulated device, 16 clients: at least 0.97", f"{full:.3f}", full >= 0.97)
    )
    slowest = max(w.observed[1].quantile(1.0) for name in _probed() for w in results.windows[name])
    desk.book.targets.append(
        Target("health within 1 s under load", f"slowest {1e3 * slowest:.0f} ms", slowest <= 1.0)
    )


def _probed() -> list[str]:
    """Cells that a health probe accompanies."""
    return [*map(_closed, _CLIENTS), _MIX_CELL]


def _report_latencies(desk: Desk, results: Results) -> None:
    table = Table(
        "serving_latency",
        "Latency on the simulated device",
        f"Milliseconds. The bare forward of {BUDGET} rows takes "
        f"{1e3 * results.bare[-1].seconds:.2f} here, that of one row {1e3 * sum(DEVICE):g}.",
        ("request", "load", "median", "p99"),
    )

    def add(cell: str, label: str, load: str) -> None:
        table.add(
            label,
            load,
            results.over(cell, lambda w: 1e3 * w.first.quantile(0.5, label)),
            results.over(cell, lambda w: 1e3 * w.first.quantile(0.99, label)),
        )

    add(_ALONE, "K = 8", "alone")
    add(_STREAM, "K = 8", "alone, on a stream")
    add(_closed(1), "K = 1", "alone")
    add(_BEHIND, "K = 1", "one client with K = 1,024 beside it")
    for label in _MIX:
        add(_MIX_CELL, label, "the mix of 16 clients")
    desk.book.write(table)
    for cell, how in ((_ALONE, ""), (_STREAM, ", on a stream")):
        added = results.against_bare(cell, lambda w, bare: w.first.quantile(0.5) - bare.seconds)
        desk.book.targets.append(
            Target(
                f"one client, K = 8: at most 3 ms over the bare forward (median){how}",
                f"{1e3 * added.value:.2f} ms",
                added.value <= 0.003,
            )
        )
    waits = results.against_bare(
        _BEHIND, lambda w, bare: (w.first.quantile(0.99) - sum(DEVICE)) / bare.seconds
    )
    desk.book.targets.append(
        Target(
            "K = 1 behind K = 1,024: waits at most two microbatches (p99 less its own forward)",
            f"{waits.value:.2f} microbatches",
            waits.value <= 2.0,
        )
    )
