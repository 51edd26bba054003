"""Poisson arrivals at the simulated device: latency against load."""

from __future__ import annotations

from carv_server.bench.figures import Curve, plot_curves
from carv_server.bench.load.folders import DEVICE, write_simulated
from carv_server.bench.load.requests import estimate_payload, service_target
from carv_server.bench.service.desk import EVENT_SHAPE, Cell, Desk, latents
from carv_server.bench.service.scheduling import BUDGET
from carv_server.bench.tables import Table

__all__ = ["CELLS", "measure_arrivals"]

_LOADS = (0.1, 0.3, 0.5, 0.7, 0.9)
_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
_CONNECTIONS = 16
CELLS = len(_LOADS)


def measure_arrivals(desk: Desk) -> None:
    """An open loop of one-row requests at shares of the device's best throughput."""
    launch, row = DEVICE
    best = BUDGET / (launch + BUDGET * row)
    folder = write_simulated(desk.folder / "device", EVENT_SHAPE, launch, row)
    arguments = ["--teacher", f"sim={folder}", "--evaluation-budget", str(BUDGET)]
    with desk.server("arrivals", arguments) as server:
        payload = estimate_payload(latents(1), [desk.handle(server)], [1.0], 1)
        target = service_target(server.address, "EstimateGradient")
        cells = [
            Cell(
                f"load {load:g}", target, {"K = 1": payload}, _CONNECTIONS, desk.pids(server),
                rate=load * best,
            )
            for load in _LOADS
        ]  # fmt: skip
        results = desk.measure("arrivals", cells)
    table = Table(
        "serving_arrivals",
        "Latency under Poisson arrivals",
        f"One-row requests to the simulated device, load as a share of its best {best:.0f} rows a "
        "second; milliseconds from the moment a request was due, so that a late driver hides "
        f"nothing. Alone, a row takes {1e3 * (launch + row):g} ms, a full microbatch "
        f"{1e3 * (launch + BUDGET * row):g}.",
        ("load", "offered a second", "arrived a second", *_QUANTILES, "failed"),
    )
    for load in _LOADS:
        name = f"load {load:g}"
        table.add(
            load,
            load * best,
            results.over(name, lambda w: w.first.rate),
            *(
                results.over(name, lambda w, share=share: 1e3 * w.first.quantile(share))
                for share in _QUANTILES.values()
            ),
            results.failed(name),
        )
    desk.book.write(table)
    curves: dict[str, Curve] = {
        title: (
            _LOADS,
            [
                results.over(f"load {load:g}", lambda w: 1e3 * w.first.quantile(share))  # noqa: B023
                for load in _LOADS
            ],
            None,
        )
        for title, share in _QUANTILES.items()
    }
    desk.book.draw(
        table.name,
        "Latency under Poisson arrivals, by load.",
        lambda path: plot_curves(
            {"one row a request": curves}, "load", "latency, ms", path, log_y=True
        ),
    )
