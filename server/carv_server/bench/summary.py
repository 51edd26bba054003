"""``summary.md``: which targets were met; ``docs/variance.md``: the tables with their figures."""

from __future__ import annotations

import shutil
from pathlib import Path

from carv_server.bench.session import Session
from carv_server.bench.tables import markdown
from carv_server.bench.targets import target_lines

__all__ = ["write_documents", "write_summary"]

_SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Within a render",
        "Variance is tr Cov of the gradient at the latents, over independent replicates of the "
        "server's own plans; RE is Var(iid uniform) / Var(method) at the same K. States of x are "
        "encoded renders of fields early, middle and late in an optimisation, blurred, half "
        "noise, and samples of the teacher itself.",
        ("headline_summary", "kinds", "draws"),
    ),
    (
        "Over renders and draws",
        "With R views and K draws each, V(R, K) = B / R + W(R, K) and one gradient costs "
        "R (c_up + K c_den). ECM is the cost of iid uniform at (R, K) = (2, 1) over that of the "
        "method at equal variance. Parameter space is that of the demo's voxel field, through "
        "renderer and encoder.",
        ("cost_ratios", "matched", "strata"),
    ),
    (
        "Proposals, prompts, weightings",
        "By quadrature over a bank of draws at each state (its kernels in t, noise sign and "
        "branch), which agrees with the replicates as the table of agreement says.",
        ("agreement", "proposals", "prompts", "weightings", "weightings_direct", "control"),
    ),
    (
        "Other estimands",
        "Score differences as in distribution matching, and attribution features.",
        ("difference", "attribution"),
    ),
    (
        "Planning, cameras, refinement",
        "What a client gets from measured costs and variances.",
        ("planner", "cameras", "refine"),
    ),
)

_FIGURES = {
    "headline_summary": ("headline",),
    "kinds": ("kinds",),
    "draws": ("draws",),
    "matched": ("grid_latent", "grid_parameter"),
    "cost_ratios": ("cost_ratios",),
    "strata": ("strata",),
    "weightings": ("weightings",),
    "attribution": ("attribution",),
    "planner": ("planner",),
    "refine": ("refine",),
}


def write_summary(session: Session, seconds: float, *, finished: bool) -> None:
    """``summary.md`` in the output folder: targets, tables, figures."""
    lines = ["# carv bench variance", "", session.origin.line(), ""]
    if finished:
        count = session.laboratory.evaluations
        lines += [f"{seconds / 60:.1f} minutes, {count} evaluations of the embedded teacher.", ""]
    else:
        lines += ["**Broken off: only what is listed here was finished.**", ""]
    lines += target_lines(session.targets)
    lines += ["", "| table | |", "| --- | --- |"]
    lines += [f"| [{name}]({name}.md) | {t.title} |" for name, t in session.tables.items()]
    lines += ["", "| figure | |", "| --- | --- |"]
    lines += [f"| [{name}]({name}.png) | {text} |" for name, text in session.figures.items()]
    (session.output / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_documents(session: Session, folder: Path) -> None:
    """``variance.md`` and its figures under ``images/``, from this run's results."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Variance, measured",
        "",
        "Written by `carv bench variance --docs docs/`; every number on this page is of one run: "
        f"{session.origin.line()}. ± is one standard error, of the measurement and not of the "
        "spread over states. Words are those of [estimator.md](estimator.md).",
        "",
        "## Targets",
        "",
        *target_lines(session.targets),
    ]
    for title, text, names in _SECTIONS:
        present = [name for name in names if name in session.tables]
        if not present:
            continue
        lines += ["", f"## {title}", "", text]
        for name in present:
            table = session.tables[name]
            lines += ["", f"### {table.title}", "", table.note]
            for figure in _FIGURES.get(name, ()):
                if figure not in session.figures:
                    continue
                target = f"variance_{figure}.png"
                shutil.copyfile(session.output / f"{figure}.png", images / target)
                caption = f"{session.figures[figure]} {session.origin.line()}"
                lines += ["", f"![{session.figures[figure]}](images/{target})", "", caption]
            lines += ["", markdown(table)]
    (folder / "variance.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
