"""RE within a render at K = 8, by replicates of the server's own plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

from carv_server.bench.cells import Measured, least, mean_of
from carv_server.bench.direct import measure_fixed, measure_resolved, measure_uniform
from carv_server.bench.figures import plot_bars, plot_curves
from carv_server.bench.kernels import Measurer, iid_variance, measurer, strata_variance
from carv_server.bench.methods import (
    OURS,
    PAPER,
    PAPER_ANTITHETIC,
    STRATA,
    guided_objective,
)
from carv_server.bench.serving import Chain
from carv_server.bench.session import Session
from carv_server.bench.settings import GUIDANCES, WARM_DRAWS
from carv_server.bench.states import State
from carv_server.bench.tables import Table
from carv_server.bench.targets import Target
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.past import Past

__all__ = ["at_least", "at_most", "measure_headline", "never_worse"]

DRAWS = 8
_FIXED = (STRATA, PAPER, PAPER_ANTITHETIC)
_COLUMNS = ("strata only", "paper", "weight + antithetic", "ours", "oracle proposal")
_SEED = 1 << 40

Ratios = dict[tuple[str, float], dict[str, Measured]]
"""By (state, guidance): RE by column."""


def measure_headline(session: Session) -> None:
    """Tables ``headline`` (each state) and ``headline_summary``, figure ``headline``."""
    objectives = {f"{s:g}": guided_objective(session.laboratory.schedule, s) for s in GUIDANCES}
    detail = Table(
        "headline",
        f"Relative efficiency at K = {DRAWS}, each state",
        "Var(iid uniform) / Var(method) at the same K, within one render: tr Cov of the gradient "
        "at the latents over independent replicates of the server's plans. Ours is the server's "
        f"default after {session.scale.warm_requests} past requests of the state's own history "
        f"(K = {WARM_DRAWS}). The oracle proposal (exact second moments, strata, antithetic) is "
        "by quadrature over a bank of draws, see the table of agreement.",
        ("prompt", "state", "guidance", *_COLUMNS, "ours / paper"),
    )
    ratios: Ratios = {}
    session.say("past requests of every state")
    pasts = _warm(session, objectives)
    for state in session.states:
        session.say(f"K = {DRAWS}: {state.name}")
        for guidance, found in _measure_state(session, state, objectives, pasts).items():
            ratios[state.name, guidance] = found
            detail.add(
                state.prompt,
                state.kind,
                f"{guidance:g}",
                *(found[name] for name in _COLUMNS),
                found["ours"].over(found["paper"]),
            )
        session.write(detail)
    _summarise(session, ratios)


def _warm(
    session: Session, objectives: Mapping[str, ObjectiveTables]
) -> dict[tuple[str, str], Past]:
    """What each state's own history says, by (state, objective)."""
    pairs = [(state, name) for state in session.states for name in objectives]
    chains = [
        Chain(
            f"headline {state.name} {name}",
            state.latents[None],
            [state.conditioning],
            objectives[name],
            WARM_DRAWS,
        )
        for state, name in pairs
    ]
    pasts = session.server.warm(chains, session.scale.warm_requests, _SEED)
    return {(state.name, name): past for (state, name), past in zip(pairs, pasts, strict=True)}


def _measure_state(
    session: Session,
    state: State,
    objectives: Mapping[str, ObjectiveTables],
    pasts: Mapping[tuple[str, str], Past],
) -> dict[float, dict[str, Measured]]:
    laboratory, effort, seeds = session.laboratory, session.scale.effort, session.seeds
    uniform = measure_uniform(laboratory, state, objectives, effort, seeds)
    fixed = [
        measure_fixed(laboratory, state, method, objectives, DRAWS, effort, seeds)
        for method in _FIXED
    ]
    found: dict[float, dict[str, Measured]] = {}
    for name, objective in objectives.items():
        base = uniform[name].scaled(1 / DRAWS)
        past = pasts[state.name, name]
        ours = measure_resolved(laboratory, state, OURS, objective, past, DRAWS, effort, seeds)
        variances = [*(each[name] for each in fixed), ours]
        row = {
            column: base.over(variance)
            for column, variance in zip(_COLUMNS[:-1], variances, strict=True)
        }
        row["oracle proposal"] = _oracle(measurer(session.bank(state), objective))
        found[float(name)] = row
    return found


def _oracle(measure: Measurer) -> Measured:
    return measure(
        lambda kernels: (
            iid_variance(kernels, kernels.uniform(), DRAWS)
            / strata_variance(kernels, kernels.oracle(), DRAWS, antithetic=True)
        )
    )


def _summarise(session: Session, ratios: Ratios) -> None:
    table = Table(
        "headline_summary",
        f"Relative efficiency at K = {DRAWS} over {len(session.states)} states",
        "Mean over states with the error of measuring (not the spread over states), and the "
        "least of any state.",
        ("guidance", "estimator", "mean RE", "least RE", "mean of RE / paper's RE"),
    )
    for guidance in GUIDANCES:
        rows = [row for (_, s), row in ratios.items() if s == guidance]
        for column in _COLUMNS:
            values = [row[column] for row in rows]
            against = [row[column].over(row["paper"]) for row in rows]
            beside = mean_of(against) if column != "paper" else None
            table.add(f"{guidance:g}", column, mean_of(values), least(values), beside)
    session.write(table)
    session.draw(
        "headline",
        f"RE within a render at K = {DRAWS}: mean over states, with standard errors; dots are "
        "single states.",
        lambda path: plot_bars(
            {
                f"guidance {guidance:g}": {
                    column: [row[column] for (_, s), row in ratios.items() if s == guidance]
                    for column in _COLUMNS
                }
                for guidance in GUIDANCES
            },
            f"RE against iid uniform, K = {DRAWS}",
            path,
        ),
    )
    _by_kind(session, ratios)
    _targets(session, ratios)


def _by_kind(session: Session, ratios: Ratios) -> None:
    """Early, middle and late in an optimisation, and the other kinds of state."""
    kinds = list(dict.fromkeys(state.kind for state in session.states))
    table = Table(
        "kinds",
        f"Relative efficiency at K = {DRAWS} by kind of state",
        "Early, middle and late are renders of one field each after "
        f"{', '.join(map(str, session.scale.stops))} iterations of score distillation; the means "
        "are over prompts.",
        ("guidance", "kind", "states", "paper", "ours", "ours / paper"),
    )
    means: dict[tuple[float, str, str], Measured] = {}
    for guidance in GUIDANCES:
        for kind in kinds:
            names = [state.name for state in session.states if state.kind == kind]
            rows = [ratios[name, guidance] for name in names]
            for column in ("paper", "ours"):
                means[guidance, kind, column] = mean_of([row[column] for row in rows])
            paper, ours = (means[guidance, kind, c] for c in ("paper", "ours"))
            table.add(f"{guidance:g}", kind, len(rows), paper, ours, ours.over(paper))
    session.write(table)
    session.draw(
        "kinds",
        f"RE at K = {DRAWS} by kind of state: early, middle and late in an optimisation, and off "
        "and on the teacher's manifold.",
        lambda path: plot_curves(
            {
                f"guidance {guidance:g}": {
                    column: (
                        list(range(len(kinds))),
                        [means[guidance, kind, column] for kind in kinds],
                        None,
                    )
                    for column in ("ours", "paper")
                }
                for guidance in GUIDANCES
            },
            "",
            f"RE against iid uniform, K = {DRAWS}",
            path,
            baseline=1.0,
            ticks=kinds,
            joined=False,
        ),
    )


def _targets(session: Session, ratios: Ratios) -> None:
    def values(guidance: float, of: Callable[[dict[str, Measured]], Measured]) -> list[Measured]:
        return [of(row) for (_, s), row in ratios.items() if s == guidance]

    for guidance, wanted in ((7.5, 3.0), (30.0, 3.0), (1.0, 6.0)):
        mean = mean_of(values(guidance, lambda row: row["ours"]))
        claim = f"mean RE ≥ {wanted:g} at K = {DRAWS}, guidance {guidance:g}"
        session.targets.append(at_least(claim, mean, wanted))
    lowest = least([row["ours"] for row in ratios.values()])
    session.targets.append(at_least("least RE of any state ≥ 1.5", lowest, 1.5))
    for guidance in GUIDANCES:
        quotient = mean_of(values(guidance, lambda row: row["ours"])).over(
            mean_of(values(guidance, lambda row: row["paper"]))
        )
        claim = f"mean RE ≥ 1.7 × the paper's, guidance {guidance:g}"
        session.targets.append(at_least(claim, quotient, 1.7))
    session.targets.append(never_worse(f"K = {DRAWS}", [row["ours"] for row in ratios.values()]))


def at_least(claim: str, measured: Measured, wanted: float) -> Target:
    return Target(claim, f"{measured.value:.2f} ± {measured.error:.2f}", measured.value >= wanted)


def at_most(claim: str, measured: Measured, wanted: float) -> Target:
    return Target(claim, f"{measured.value:.3f} ± {measured.error:.3f}", measured.value <= wanted)


def never_worse(where: str, ratios: Sequence[Measured]) -> Target:
    """No RE below 1 by more than its error bar. The bars hold for all at once, at 95 %
    (Bonferroni): one standard error would fail one in six of equals."""
    bars = NormalDist().inv_cdf(1 - 0.05 / len(ratios))
    worst = min(ratios, key=lambda r: (r.value - 1) / max(r.error, 1e-12))
    return Target(
        "never worse than iid uniform by more than the error bar, simultaneous at 95 %, " + where,
        f"worst of {len(ratios)}: {worst.value:.2f} ± {worst.error:.2f}",
        worst.value + bars * worst.error >= 1.0,
    )
