"""The embedded teacher, a real network: evaluations a second through the service as a share of the
network's own."""

from __future__ import annotations

from carv_server.bench.figures import Curve, plot_curves
from carv_server.bench.load.bare import Bare
from carv_server.bench.load.requests import estimate_payload, service_target
from carv_server.bench.service.desk import Cell, Desk, latents, so_many
from carv_server.bench.tables import Table
from carv_server.teachers.registry import EMBEDDED

__all__ = ["CELLS", "measure_model"]

_CLIENTS = (1, 4, 16)
_DRAWS = 8
_GUIDANCE = 7.5
_BRANCHES = 2
_SIZES = (8, 16, 32, 64)
_EVENT_SHAPE = (4, 8, 8)
_PROMPT = "a red torus"
_STRETCH = 4.0
CELLS = round(_STRETCH * (len(_CLIENTS) + 1))
"""Windows of a round, the bare model's among them."""


def measure_model(desk: Desk) -> None:
    """Closed loops with guidance, and the latency of one request over the bare forward."""
    with desk.server("model", []) as server:
        handles = [desk.handle(server, _PROMPT), desk.handle(server)]
        payload = estimate_payload(
            latents(1, _EVENT_SHAPE), handles, [_GUIDANCE, 1.0 - _GUIDANCE], _DRAWS
        )
        target = service_target(server.address, "EstimateGradient")
        cells = [
            Cell(
                so_many(n), target, {"request": payload}, n, desk.pids(server),
                companions=(desk.health(server),), stretch=_STRETCH,
            )
            for n in _CLIENTS
        ]  # fmt: skip
        seconds = _STRETCH * desk.scale.seconds
        bare = Bare(_SIZES, seconds, teacher=str(EMBEDDED.folder), prompt=_PROMPT)
        results = desk.measure("model", cells, bare)
    evaluations = _DRAWS * _BRANCHES
    table = Table(
        "serving_model",
        "The embedded teacher",
        f"R = 1, K = {_DRAWS}, guidance {_GUIDANCE:g}: {evaluations} evaluations a request; one "
        "torch thread, the server's defaults. Share of the bare model's evaluations a second at "
        f"its best batch size ({results.bare[-1].size} rows, {1e3 * results.bare[-1].seconds:.1f} "
        "ms) in the same round.",
        (
            *("clients", "share", "CPU, ms a request", "median, ms", "p99, ms"),
            *("health median, ms", "slowest health, ms", "failed"),
        ),
    )
    shares = [
        results.against_bare(
            so_many(n), lambda w, b: evaluations * w.first.rate / b.rows_per_second
        )
        for n in _CLIENTS
    ]
    for n, share in zip(_CLIENTS, shares, strict=True):
        name = so_many(n)
        table.add(
            n,
            share,
            results.over(name, lambda w: 1e3 * w.server_cpu_per_request),
            results.over(name, lambda w: 1e3 * w.first.quantile(0.5)),
            results.over(name, lambda w: 1e3 * w.first.quantile(0.99)),
            results.over(name, lambda w: 1e3 * w.observed[1].quantile(0.5)),
            max(1e3 * w.observed[1].quantile(1.0) for w in results.windows[name]),
            results.failed(name),
        )
    desk.book.write(table)
    curves: dict[str, Curve] = {"ours": (_CLIENTS, shares, None)}
    desk.book.draw(
        table.name,
        "Share of the embedded teacher's own evaluations a second.",
        lambda path: plot_curves(
            {"K = 8, guidance 7.5": curves}, "clients", "share of the bare model", path,
            log_x=True, baseline=1.0,
        ),
    )  # fmt: skip
