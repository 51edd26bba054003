"""``report.html``: one page that shows the pictures and says what was measured and how."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from carv_server.demo.metrics import Metrics

__all__ = ["IMAGES", "render_report"]

IMAGES = (
    "turntable.gif",
    "turntable_baseline.gif",
    "turntable_carv.gif",
    "convergence.png",
    "variance.png",
)
"""Every picture that the report shows, by file name beside it."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% } figure { margin: 1rem 0 } figcaption, small { color: #555 }
code { background: #f3f3f3; padding: .1rem .3rem }
.pair { display: flex; gap: 1rem } .pair figure { margin: 0 }
"""


def render_report(metrics: Metrics) -> str:
    """The page for what ``metrics.collect`` gathered; pictures are linked by file name."""
    prompt = html.escape(metrics["prompt"])
    methods: Mapping[str, Metrics] = metrics["methods"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{prompt}: CARV demo</title><style>{_STYLE}</style></head><body>",
        f"<h1>“{prompt}”</h1>",
        "<p>Text to 3-D by score distillation: a renderer in one process, a frozen "
        "latent-diffusion teacher in another, gRPC between them. Both objects had the same "
        "measured compute.</p>",
        _figure("turntable.gif", "The first seed of each method."),
        "<h2>At equal compute</h2>",
        _verdict(metrics),
        _table(_comparison(methods)),
        _costs(metrics),
        _figure("convergence.png", _convergence_caption(metrics)),
        "<h2>Variance against compute</h2>",
        _figure("variance.png", _variance_caption(metrics)),
        _table(_variance_rows(metrics)),
        "<h2>Each turntable</h2><div class='pair'>",
        *[_figure(f"turntable_{name}.gif", each["label"]) for name, each in methods.items()],
        "</div>",
        "<h2>How it was made</h2>",
        _provenance(metrics),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(metrics: Metrics) -> str:
    shares = metrics["carv_share_of_compute_to_reach_baseline"]
    lines = [
        _reached(shares["probability"], "score (posterior of the prompt)"),
        _reached(shares["margin"], "margin"),
    ]
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def _reached(share: float | None, what: str) -> str:
    if share is None:
        return f"CARV does not reach the baseline's final {what} within the budget."
    return f"CARV reaches the baseline's final {what} at <b>{share:.0%}</b> of the compute."


def _comparison(methods: Mapping[str, Metrics]) -> list[list[str]]:
    rows = [["", *(html.escape(each["label"]) for each in methods.values())]]
    labels: list[tuple[str, str, str]] = [
        ("compute_seconds", "compute of a run, s", ".1f"),
        ("iterations", "iterations", ".0f"),
        ("upstream_seconds", "upstream per iteration, s", ".4f"),
        ("denoise_seconds", "denoise per iteration, s", ".4f"),
        ("overhead_seconds", "transport and queue per iteration, s (not charged)", ".4f"),
        ("probability", "score: posterior of the prompt, held-out views", ".3f"),
        ("accuracy", "held-out views read as the prompt", ".0%"),
        ("margin", "margin to the next prompt, squared error", ".2f"),
    ]
    for key, label, style in labels:
        rows.append([label, *(format(each["final"][key], style) for each in methods.values())])
    return rows


def _costs(metrics: Metrics) -> str:
    study = metrics["variance"]
    carv = metrics["methods"]["carv"]["final"]
    draws = metrics["methods"]["carv"]["draws"]
    each = carv["denoise_seconds"] / draws
    return (
        f"<p>One view costs c<sub>up</sub> = {1e3 * carv['upstream_seconds']:.1f} ms upstream "
        f"(render, encode, backward, Adam step); one draw costs c<sub>den</sub> = {1e3 * each:.1f} "
        f"ms of teacher in a batch of {draws} (two evaluations, for guidance): a ratio of "
        f"{carv['upstream_seconds'] / each:.1f}. Means over {metrics['seeds']} seeds; variance "
        f"study over {study['cameras']} cameras.</p>"
    )


def _convergence_caption(metrics: Metrics) -> str:
    count = len(metrics["classifier_prompts"])
    views = len(metrics["held_out_views"])
    return (
        f"Score against compute: mean and range over {metrics['seeds']} seeds. The teacher is used "
        f"as a classifier on {views} held-out views: E(x, c) is its squared denoising error under "
        f"prompt c, over a bank of (t, ε) shared by all {count} prompts (the other shapes with "
        "this colour, the other colours with this shape). Left: softmax of −E at the right "
        "prompt, averaged over views. Right: the least E among the wrong prompts less that of the "
        "right one. Scoring is not charged. A run stops within half an iteration of its budget; "
        f"curves end at {metrics['common_compute_seconds']:.2f} s, which every run has spent."
    )


def _variance_caption(metrics: Metrics) -> str:
    return (
        "Variance (trace of the covariance) of the gradient of one random view with respect to "
        "the field's parameters, at the baseline's field of half the budget, against the measured "
        "compute of one such gradient; numbers are K. Left: all of it. Right: what the draws "
        "cause; bars are one standard error over cameras."
    )


def _variance_rows(metrics: Metrics) -> list[list[str]]:
    rows = [["method", "K", "compute, ms", "W(K)", "± s.e.", "B + W(K)"]]
    rows += [
        [
            html.escape(point["method"]),
            str(point["draws"]),
            f"{1e3 * point['compute']:.1f}",
            f"{point['within']:.3g}",
            f"{point['standard_error']:.2g}",
            f"{point['total']:.3g}",
        ]
        for point in metrics["variance"]["points"]
    ]
    return rows


def _provenance(metrics: Metrics) -> str:
    machine: Mapping[str, Any] = metrics["machine"]
    teacher: Mapping[str, Any] = metrics["teacher"]
    settings: Mapping[str, Any] = metrics["settings"]
    facts = {
        "command": f"<code>{html.escape(metrics['command'])}</code>",
        "teacher": html.escape(f"{teacher['id']}, digest {teacher['digest'][:12]}"),
        "guidance": f"{settings['guidance_scale']:g}",
        "timesteps": f"{settings['first_range']} to {settings['last_range']} of the schedule",
        "machine": html.escape(", ".join(f"{key} {value}" for key, value in machine.items())),
        "wall time": f"{metrics['wall_seconds']:.0f} s, server start included",
    }
    rows = "".join(f"<li>{key}: {value}</li>" for key, value in facts.items())
    return (
        f"<ul>{rows}</ul><p>Runs stop on measured time, so iteration counts differ from machine to "
        "machine. All numbers: <a href='metrics.json'>metrics.json</a>; the server's log: "
        "<a href='server.log'>server.log</a>.</p>"
    )


def _figure(name: str, caption: str) -> str:
    return (
        f"<figure><img src='{name}' alt='{html.escape(name)}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"
