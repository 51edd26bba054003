"""A teacher that costs nothing: what the service itself costs, beside an echo server's bytes."""

from __future__ import annotations

from carv_server.bench.figures import Curve, plot_curves
from carv_server.bench.load.folders import write_simulated
from carv_server.bench.load.requests import (
    estimate_payload,
    service_target,
    stream_payload,
    stream_target,
)
from carv_server.bench.service.desk import EVENT_SHAPE, Cell, Desk, Results, latents, so_many
from carv_server.bench.service.echo import echo_target, running_echo
from carv_server.bench.tables import Table
from carv_server.bench.targets import Target

__all__ = ["CELLS", "measure_overhead"]

_CLIENTS = (1, 4, 16, 64)
_SIZES = {"64 KiB": EVENT_SHAPE, "1 MiB": (4, 256, 256)}
_TEACHERS = {"CARV": False, "CARV, with arithmetic": True}
"""Whether noise, z_t and sums are made."""
_STREAM = "CARV, stream"
_SERVERS = (_STREAM, *_TEACHERS, "echo")
CELLS = len(_CLIENTS) * len(_SIZES) * len(_SERVERS)


def measure_overhead(desk: Desk) -> None:
    """Requests a second and processor time a request at K = 1, against the echo server."""
    ids: dict[tuple[str, str], str] = {}
    arguments: list[str] = []
    for size, shape in _SIZES.items():
        for number, (name, arithmetic) in enumerate(_TEACHERS.items()):
            teacher = ids[name, size] = f"noop{number}-{shape[-1]}"
            folder = write_simulated(desk.folder / teacher, shape, 0.0, 0.0, arithmetic=arithmetic)
            arguments.append(f"--teacher={teacher}={folder}")
    with desk.server("overhead", arguments) as server, running_echo() as (address, echo_pid):
        cells: list[Cell] = []
        for size, shape in _SIZES.items():
            payloads: dict[str, bytes] = {}
            for name in _TEACHERS:
                teacher = ids[name, size]
                handle = desk.handle(server, teacher=teacher)
                payloads[name] = estimate_payload(latents(1, shape), [handle], [1.0], 1, teacher)
            for clients in _CLIENTS:
                cells += [
                    Cell(
                        _name(name, size, clients),
                        service_target(server.address, "EstimateGradient"),
                        {"request": payload},
                        clients,
                        desk.pids(server),
                    )
                    for name, payload in payloads.items()
                ]
                cells.append(
                    Cell(
                        _name(_STREAM, size, clients),
                        stream_target(server.address),
                        {"request": stream_payload(payloads["CARV"])},
                        clients,
                        desk.pids(server),
                    )
                )
                cells.append(
                    Cell(
                        _name("echo", size, clients),
                        echo_target(address),
                        {"request": payloads["CARV"]},
                        clients,
                        lambda: [echo_pid],
                    )
                )
        results = desk.measure("overhead", cells)
    _report(desk, results)


def _name(server: str, size: str, clients: int) -> str:
    return f"{server}, {size}, {so_many(clients)}"


def _report(desk: Desk, results: Results) -> None:
    table = Table(
        "serving_overhead",
        "A teacher that costs nothing",
        "EstimateGradient at R = K = 1 on one branch, a whole render there and a whole gradient "
        "back; the stream is StreamGradients, which each client opens once and then asks the same "
        "on, one request at a time. With arithmetic the replica makes noise and z_t, a prediction "
        "for the price of a multiplication, and residual norms; without, it answers zeros, and "
        "what is left is the service alone. Echo: a gRPC server in Python of the same library "
        "that returns the bytes it was sent, in a call for each. Processor milliseconds a request "
        "are the server's and the driver's.",
        (
            *("latents", "clients", "server", "requests a second", "CPU, ms"),
            *("driver CPU, ms", "median, ms", "p99, ms", "failed"),
        ),
    )
    panels: dict[str, dict[str, Curve]] = {}
    for size in _SIZES:
        for server in _SERVERS:
            names = [_name(server, size, clients) for clients in _CLIENTS]
            for clients, name in zip(_CLIENTS, names, strict=True):
                table.add(
                    *(size, clients, server),
                    results.over(name, lambda w: w.first.rate),
                    results.over(name, lambda w: 1e3 * w.server_cpu_per_request),
                    results.over(
                        name, lambda w: 1e3 * w.first.client_cpu_seconds / max(1, w.first.requests)
                    ),
                    results.over(name, lambda w: 1e3 * w.first.quantile(0.5)),
                    results.over(name, lambda w: 1e3 * w.first.quantile(0.99)),
                    results.failed(name),
                )
            rates = [results.over(name, lambda w: w.first.rate) for name in names]
            panels.setdefault(size, {})[server] = (_CLIENTS, rates, None)
    desk.book.write(table)
    desk.book.draw(
        table.name,
        "Requests a second of a teacher that costs nothing, and of an echo server.",
        lambda path: plot_curves(panels, "clients", "requests a second", path, log_x=True),
    )
    for server, how in (("CARV", ""), (_STREAM, ", on streams")):
        for size, clients, least in (("64 KiB", 1, 1000), ("64 KiB", 16, 2000), ("1 MiB", 16, 400)):
            rate = results.over(_name(server, size, clients), lambda w: w.first.rate).value
            desk.book.targets.append(
                Target(
                    f"no-op teacher, {size}, {so_many(clients)}: at least {least} requests a "
                    f"second{how}",
                    f"{rate:.0f}",
                    rate >= least,
                )
            )
        name = _name(server, "64 KiB", 16)
        cpu = results.over(name, lambda w: 1e3 * w.server_cpu_per_request).value
        desk.book.targets.append(
            Target(
                "no-op teacher, 64 KiB, 16 clients: at most 0.6 ms of processor time a "
                f"request{how}",
                f"{cpu:.2f} ms",
                cpu <= 0.6,
            )
        )
