"""Variance and ECM over (R, K), against compute, and by cost ratio."""

from __future__ import annotations

import time
from dataclasses import replace

from carv_server.bench.cells import Measured, mean_of
from carv_server.bench.figures import Curve, plot_curves
from carv_server.bench.grid import SPACES, GridStudy, Replicates, between_views, measure_within
from carv_server.bench.methods import OURS, PAPER, UNIFORM, Method, guided_objective
from carv_server.bench.parameter import Views, draw_views
from carv_server.bench.serving import Chain
from carv_server.bench.session import Session
from carv_server.bench.settings import WARM_DRAWS
from carv_server.bench.tables import Table
from carv_server.bench.targets import Target
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.past import Past

__all__ = ["COST_RATIOS", "GRID_GUIDANCE", "measure_grid"]

GRID_GUIDANCE = 7.5
COST_RATIOS = (0.0, 1.0, 3.0, 9.0, 30.0)
_FIGURE_RATIO = 9.0
_METHODS = (UNIFORM, PAPER, OURS)
_LABELS = {"uniform": "iid uniform", "paper": "paper", "ours": "ours"}
_SEED = 1 << 41
_VIEW_SEED = 909


def measure_grid(session: Session) -> None:
    """Tables ``grid``, ``matched`` and ``cost_ratios``, and figures."""
    objective = guided_objective(session.laboratory.schedule, GRID_GUIDANCE)
    for stage in session.stages:
        if stage.prompt != session.scale.prompts[0]:
            continue
        if stage.stage not in session.scale.grid_stages:
            continue
        session.say(f"(R, K): Jacobians, {stage.stage}")
        views = draw_views(
            session.studio, stage, session.scale.cameras, _VIEW_SEED, session.advance
        )
        session.studies.append(_study(session, views, objective))
        _write_grid(session, session.studies)
        _write_matched(session, session.studies)
        _write_ratios(session, session.studies)


def _study(session: Session, views: Views, objective: ObjectiveTables) -> GridStudy:
    scale, laboratory = session.scale, session.laboratory
    started, before = time.perf_counter(), laboratory.evaluations
    past = _warm(session, views, objective)
    within: dict[tuple[str, str, int, int], Measured] = {}

    def replicates(method: Method, renders: int, draws: int) -> Replicates:
        session.say(f"(R, K) = ({renders}, {draws}), {views.stage.stage}: {method.name}")
        known = past if method.learns else None
        effort = scale.grid_effort
        # A single draw is cheap, and all rests on it; a replicate of more renders tells more.
        times = 8.0 if method is UNIFORM else renders**-0.5
        effort = replace(effort, most=int(effort.most * times))
        return measure_within(
            laboratory, views, method, objective, known, renders, draws, effort, session.seeds
        )

    single = replicates(UNIFORM, 1, 1)
    for draws in scale.grid_draws:
        paper = replicates(PAPER, 1, draws)
        for renders in scale.grid_renders:
            for space in SPACES:
                uniform = single.within[space].scaled(1 / (renders * draws))
                within[space, "uniform", renders, draws] = uniform
                within[space, "paper", renders, draws] = paper.within[space].scaled(1 / renders)
    between: dict[str, Measured] = {}
    for renders in scale.grid_renders:
        for draws in scale.grid_draws:
            ours = replicates(OURS, renders, draws)
            for space in SPACES:
                within[space, "ours", renders, draws] = ours.within[space]
                if (renders, draws) == (1, scale.grid_draws[-1]):
                    between[space] = between_views(ours.values[space])
    evaluations = laboratory.evaluations - before
    # Two evaluations make a draw; planning and reduction are in, as they are when serving.
    seconds = 2 * (time.perf_counter() - started) / evaluations
    return GridStudy(views, past, between, within, seconds)


def _warm(session: Session, views: Views, objective: ObjectiveTables) -> Past:
    label = f"grid {views.stage.prompt} {views.stage.stage}"
    chain = Chain(label, views.latents, views.prompts, objective, WARM_DRAWS)
    return session.server.warm([chain], session.scale.warm_requests, _SEED)[0]


def _write_grid(session: Session, studies: list[GridStudy]) -> None:
    table = Table(
        "grid",
        "Variance and effective compute multiplier over (R, K)",
        f"One gradient of {session.scale.prompts[0]!r} from R views and K draws of each, guidance "
        f"{GRID_GUIDANCE:g}: within is the variance over draws, total adds that between views, "
        f"B / R, R views drawn from {session.scale.cameras}. RE is against iid uniform at the same "
        f"(R, K), of either variance; ECM at c_up/c_den = {_FIGURE_RATIO:g} against iid uniform "
        "at (2, 1). iid draws are measured at K = 1 and the paper's at R = 1, from which the rest "
        "follows by independence; ours, which couples renders, everywhere.",
        (
            "stage", "space", "method", "R", "K", "within", "total", "RE within", "RE total",
            f"ECM at {_FIGURE_RATIO:g}",
        ),
    )  # fmt: skip
    for study in studies:
        order = [m.name for m in _METHODS]
        for (space, method, renders, draws), within in sorted(
            study.within.items(), key=lambda item: (item[0][0], order.index(item[0][1]), item[0])
        ):
            base = study.within[space, "uniform", renders, draws]
            point = (method, renders, draws)
            table.add(
                study.views.stage.stage,
                space,
                method,
                renders,
                draws,
                within,
                study.total(space, method, renders, draws),
                base.over(within) if method != "uniform" else None,
                study.quotient(space, ("uniform", renders, draws), point)
                if method != "uniform"
                else None,
                study.multiplier(space, _FIGURE_RATIO, point),
            )
    session.write(table)
    for space in SPACES:
        session.draw(
            f"grid_{space}",
            f"Variance of one gradient in {space} space against its compute R (c_up + K c_den) "
            f"at c_up/c_den = {_FIGURE_RATIO:g}; ours is labelled with K.",
            lambda path, space=space: plot_curves(
                {s.views.stage.stage: _grid_curves(session, s, space) for s in studies},
                "compute of one gradient, c_den = 1",
                f"variance in {space} space",
                path,
                log_x=True,
                log_y=True,
            ),
        )


def _write_matched(session: Session, studies: list[GridStudy]) -> None:
    table = Table(
        "matched",
        "Relative efficiency at matched (R, K)",
        f"Against iid uniform at the same (R, K), guidance {GRID_GUIDANCE:g}, mean over "
        f"{', '.join(study.views.stage.stage for study in studies)}: of the variance over draws, "
        "and of the total, which holds that between views.",
        ("space", "R", "K", "paper, draws", "ours, draws", "paper, total", "ours, total"),
    )
    for space in SPACES:
        for renders in session.scale.grid_renders:
            for draws in session.scale.grid_draws:
                base = ("uniform", renders, draws)
                cells: list[Measured] = []
                for name in ("paper", "ours"):
                    quotients = [
                        s.within[space, *base].over(s.within[space, name, renders, draws])
                        for s in studies
                    ]
                    cells.append(mean_of(quotients))
                for name in ("paper", "ours"):
                    point = (name, renders, draws)
                    cells.append(mean_of([s.quotient(space, base, point) for s in studies]))
                table.add(space, renders, draws, *cells)
    session.write(table)


def _grid_curves(session: Session, study: GridStudy, space: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for method in _METHODS:
        for renders in session.scale.grid_renders:
            draws = session.scale.grid_draws
            curves[f"{_LABELS[method.name]}|R = {renders}"] = (
                [renders * (_FIGURE_RATIO + k) for k in draws],
                [study.total(space, method.name, renders, k) for k in draws],
                [str(k) for k in draws] if method is OURS else None,
            )
    return curves


def _write_ratios(session: Session, studies: list[GridStudy]) -> None:
    table = Table(
        "cost_ratios",
        "Best effective compute multiplier by cost ratio",
        "ECM of each method at its own best (R, K) of the grid, against iid uniform at (2, 1), "
        "by c_up/c_den; c_den is one draw, two evaluations. The last ratio of each stage is this "
        "machine's, measured.",
        (
            "stage", "space", "c_up/c_den", "uniform (R, K)", "uniform", "paper (R, K)", "paper",
            "ours (R, K)", "ours", "ours / paper",
        ),
    )  # fmt: skip
    curves: dict[str, dict[str, Curve]] = {}
    for space in SPACES:
        rows: dict[float, list[tuple[dict[str, Measured], Measured]]] = {}
        for study in studies:
            measured = study.views.upstream_seconds / study.draw_seconds
            for ratio in (*COST_RATIOS, measured):
                best = {m.name: study.best(space, ratio, m.name) for m in _METHODS}
                values = {
                    name: study.multiplier(space, ratio, (name, *point))
                    for name, point in best.items()
                }
                gain = study.multiplier(
                    space, ratio, ("ours", *best["ours"]), ("paper", *best["paper"])
                )
                cells = [c for n, p in best.items() for c in (str(p), values[n])]
                label = f"{ratio:g}" if ratio in COST_RATIOS else f"{ratio:.2f} (measured)"
                table.add(study.views.stage.stage, space, label, *cells, gain)
                if ratio in COST_RATIOS:
                    rows.setdefault(ratio, []).append((values, gain))
        means = {
            ratio: {n: mean_of([v[n] for v, _ in group]) for n in _LABELS}
            for ratio, group in rows.items()
        }
        curves[f"{space} space"] = {
            label: (list(range(len(means))), [means[r][name] for r in means], None)
            for name, label in _LABELS.items()
        }
        gains = {ratio: mean_of([gain for _, gain in group]) for ratio, group in rows.items()}
        curves[f"{space} space"]["ours / paper"] = (
            list(range(len(gains))),
            list(gains.values()),
            None,
        )
        _ratio_targets(session, space, gains)
    session.write(table)
    session.draw(
        "cost_ratios",
        "Best ECM over (R, K) against iid uniform at (2, 1), mean over stages, and ours against "
        "the paper's at its own best.",
        lambda path: plot_curves(
            curves,
            "c_up / c_den",
            "best ECM",
            path,
            baseline=1.0,
            ticks=[f"{ratio:g}" for ratio in COST_RATIOS],
        ),
    )


def _ratio_targets(session: Session, space: str, gains: dict[float, Measured]) -> None:
    for ratio, wanted in ((3.0, 1.25), (9.0, 1.25), (30.0, 1.15)):
        gain = gains[ratio]
        claim = f"best ECM ≥ {wanted:g} × the paper's at c_up/c_den = {ratio:g}, {space} space"
        session.replace_target(
            Target(claim, f"{gain.value:.2f} ± {gain.error:.2f}", gain.value >= wanted)
        )
