"""Tables and figures of ``device.json``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_report"]

_LOADS = {"draws": "K = 8", "row": "one row"}
# What a server's network is, bare.
_PART_OF_MODE = {
    "eager": "channels_last",
    "compiled": "compiled_any",
    "graphs": "graphs",
    "graphs, budget 64": "graphs",
    "compiled, graphs": "compiled_any",
}
_BARE_COLUMNS = ("model", "part", "dtype", "rows", "ms", "rows_per_second", "when")
_SERVED_COLUMNS = (
    *("model", "mode", "load", "clients", "evaluations_per_second", "share_of_bare"),
    *("counted_per_second",),
    *("median_ms", "p99_ms", "busy_percent", "watts", "clock_mhz", "server_cores", "failures"),
)


def write_report(out: Path) -> None:
    """``device.md``, ``bare.csv``, ``served.csv``, and ``gpu_*.png`` where matplotlib is there."""
    found = json.loads((out / "device.json").read_text())
    models: dict[str, Any] = found["models"]
    bare, served = list(_bare_rows(models)), list(_served_rows(models))
    _write_csv(out / "bare.csv", _BARE_COLUMNS, bare)
    _write_csv(out / "served.csv", _SERVED_COLUMNS, served)
    machine = found["machine"]
    lines = [
        f"{machine['device']}, torch {machine['torch']}, {machine['date']}: `{machine['command']}`",
        "",
    ]
    for name, entry in models.items():
        lines += [f"## {entry['title']}", "", *_bare_table(entry), ""]
        lines += [*_words(entry), ""]
        rows = [row for row in served if row["model"] == name]
        lines += [*_served_table(rows), ""]
    (out / "device.md").write_text("\n".join(lines))
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        return
    for name, entry in models.items():
        rows = [row for row in served if row["model"] == name]
        if entry["bare"]:
            _plot(plt, out / f"gpu_{name}.png", entry, rows)


def bare_rate(entry: Mapping[str, Any], part: str) -> float | None:
    """Best rows a second of a part, before and after the servers: the mean of both."""
    rates: list[float] = []
    for when in ("bare", "again"):
        timed = [p for p in entry[when] if p["part"] == part and "seconds" in p]
        if timed:
            rates.append(max(p["rows"] / p["seconds"] for p in timed))
    return sum(rates) / len(rates) if rates else None


def closed_loop_rate(point: Mapping[str, Any]) -> float:
    """Evaluations a second by Little's law: every client has one request in flight. Answers come
    in bursts, and a window that counts them is off by one at either end. Where only the median of
    the latencies was kept, by that."""
    latency = point.get("mean_ms", point["median_ms"])
    return point["clients"] * point["evaluations"] / (1e-3 * latency)


def _bare_rows(models: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for name, entry in models.items():
        for when in ("bare", "again"):
            for point in entry[when]:
                if "seconds" in point:
                    yield {
                        "model": name,
                        "part": point["part"],
                        "dtype": point["dtype"],
                        "rows": point["rows"],
                        "ms": round(1e3 * point["seconds"], 4),
                        "rows_per_second": round(point["rows"] / point["seconds"], 2),
                        "when": {"bare": "before", "again": "after"}[when],
                    }


def _served_rows(models: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for name, entry in models.items():
        for point in entry["served"]:
            bare = bare_rate(entry, _PART_OF_MODE[point["mode"]])
            rate = closed_loop_rate(point)
            yield {
                "model": name,
                "mode": point["mode"],
                "load": point["load"],
                "clients": point["clients"],
                "evaluations_per_second": round(rate, 2),
                "share_of_bare": round(rate / bare, 4) if bare else "",
                "counted_per_second": round(point["rate"], 2),
                "median_ms": round(point["median_ms"], 3),
                "p99_ms": round(point["p99_ms"], 3),
                "busy_percent": point["busy"],
                "watts": None if point["watts"] is None else round(point["watts"]),
                "clock_mhz": point["clock_mhz"],
                "server_cores": round(point["cores"], 2),
                "failures": sum(point["failures"].values()),
            }


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with file.open("w", newline="") as sink:
        writer = csv.DictWriter(sink, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _bare_table(entry: Mapping[str, Any]) -> Iterable[str]:
    points = [point for point in entry["bare"] if "seconds" in point]
    columns = list(dict.fromkeys((p["part"], p["dtype"]) for p in points))
    yield "| rows | " + " | ".join(f"{part}, {dtype}" for part, dtype in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for rows in sorted({p["rows"] for p in points}):
        cells: list[str] = []
        for part, dtype in columns:
            here = [p for p in points if (p["part"], p["dtype"], p["rows"]) == (part, dtype, rows)]
            cells.append(
                f"{rows / here[-1]['seconds']:.0f} ({1e3 * here[-1]['seconds']:.2f} ms)"
                if here
                else ""
            )
        yield f"| {rows} | " + " | ".join(cells) + " |"


def _words(entry: Mapping[str, Any]) -> Iterable[str]:
    for point in entry["bare"]:
        if "error" in point:
            yield f"- {point['dtype']} against float32: relative error {point['error']:.2g}"
        if point["part"] == "failed":
            yield f"- failed: {point['said'][-300:]}"
    for server in entry["servers"]:
        if "failed" in server:
            yield f"- {server['mode']}: {server['failed'][-300:]}"
            continue
        words = f"- {server['mode']}: ready after {server['ready_seconds']:.0f} s"
        if server["dtype"]:
            words += f"; {server['dtype']}, probe gradient off by {server['gradient_error']}"
        if server["budget"]:
            words += f"; microbatches of {server['budget']}, {server['tuning']}"
        yield words


def _served_table(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    heads = ("mode", "load", "clients", "evaluations/s", "counted", "share of bare")
    heads += ("median, ms", "p99, ms", "busy, %", "W", "cores", "failed")
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        share = f"{row['share_of_bare']:.1%}" if row["share_of_bare"] != "" else ""
        cells = (
            row["mode"],
            _LOADS[row["load"]],
            row["clients"],
            f"{row['evaluations_per_second']:.0f}",
            f"{row['counted_per_second']:.0f}",
            share,
            f"{row['median_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            "" if row["busy_percent"] is None else f"{row['busy_percent']:.0f}",
            "" if row["watts"] is None else row["watts"],
            row["server_cores"],
            row["failures"],
        )
        yield "| " + " | ".join(map(str, cells)) + " |"


def _plot(plt: Any, file: Path, entry: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    points = [point for point in entry["bare"] if "seconds" in point]
    for part, dtype in dict.fromkeys((p["part"], p["dtype"]) for p in points):
        line = sorted(
            (p["rows"], p["rows"] / p["seconds"])
            for p in points
            if (p["part"], p["dtype"]) == (part, dtype)
        )
        left.plot(*zip(*line, strict=True), marker="o", label=f"{part}, {dtype}")
    left.set_xscale("log", base=2)
    left.set(xlabel="rows in a forward", ylabel="evaluations a second")
    left.set_title("bare network")
    for mode, load in dict.fromkeys((row["mode"], row["load"]) for row in rows):
        line = [
            (row["clients"], row["share_of_bare"])
            for row in rows
            if (row["mode"], row["load"]) == (mode, load) and row["share_of_bare"] != ""
        ]
        if line:
            right.plot(*zip(*line, strict=True), marker="o", label=f"{mode}, {_LOADS[load]}")
    right.axhline(1.0, color="0.6", linewidth=1)
    right.set_xscale("log", base=2)
    right.set(xlabel="clients", ylabel="share of the bare network", ylim=(0, None))
    right.set_title("served over gRPC")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize="small")
    figure.suptitle(entry["title"])
    figure.savefig(file, dpi=110)
    plt.close(figure)
