"""Tables over many K, proposals, prompts, weightings and estimands, by quadrature over banks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from carv_server.bench.cells import Measured, jackknife, least, mean_of
from carv_server.bench.figures import plot_curves
from carv_server.bench.headline_section import never_worse
from carv_server.bench.kernels import (
    Kernels,
    Measurer,
    iid_variance,
    measurer,
    noise_control,
    strata_variance,
)
from carv_server.bench.methods import difference_objective, guided_objective
from carv_server.bench.session import Session
from carv_server.bench.settings import GUIDANCES
from carv_server.bench.states import State
from carv_server.bench.tables import Table
from carv_server.sampling.objective import DEFAULT_RANGE, NamedWeighting, ObjectiveTables

__all__ = ["WEIGHTINGS", "measure_breadth"]

Variance = Callable[[Kernels, int], float]

VARIANCES: dict[str, Variance] = {
    "strata only": lambda k, n: strata_variance(k, k.uniform(), n, antithetic=False),
    "paper": lambda k, n: strata_variance(k, k.weight(), n, antithetic=False),
    "weight + antithetic": lambda k, n: strata_variance(k, k.weight(), n, antithetic=True),
    "ours": lambda k, n: strata_variance(k, k.learned(), n, antithetic=True),
}
"""tr Cov at K by estimator; ours with known moments in place of learned ones: the limit of the
server's learning, which the tables of replicates measure."""

WEIGHTINGS: dict[str, tuple[NamedWeighting, tuple[float, float]]] = {
    "sds": (NamedWeighting.SDS, DEFAULT_RANGE),
    "uniform": (NamedWeighting.UNIFORM, DEFAULT_RANGE),
    "dreamfusion_sqrt": (NamedWeighting.DREAMFUSION_SQRT, DEFAULT_RANGE),
    "fantasia3d": (NamedWeighting.FANTASIA3D, DEFAULT_RANGE),
    "x0, t in 2 .. 60 %": (NamedWeighting.X0, (0.02, 0.6)),
}
"""By label: weighting and range. x0 = sigma / alpha has no mean worth the name up to 98 %."""

_DRAWS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
_CONTROL_DRAWS = (1, 2, 8)
_K = 8


def measure_breadth(session: Session) -> None:
    """Tables ``draws``, ``agreement``, ``proposals``, ``prompts``, ``weightings``,
    ``difference`` and ``control``; figures ``draws`` and ``weightings``."""
    session.say("banks of draws")
    for state in (*session.states, *session.samples):
        session.bank(state)
    for name, section in (
        ("K from 1 to 32", _draws),
        ("direct against quadrature", _agreement),
        ("proposals", _proposals),
        ("prompts", _prompts),
        ("weightings", _weightings),
        ("score differences", _difference),
        ("noise control variate", _control),
    ):
        session.say(name)
        section(session)


def efficiency(variance: Variance, draws: int) -> Callable[[Kernels], float]:
    """RE against iid uniform at the same K."""
    return lambda k: iid_variance(k, k.uniform(), draws) / variance(k, draws)


def _measurers(
    session: Session, objective: ObjectiveTables, states: Sequence[State] | None = None
) -> list[Measurer]:
    chosen = session.states if states is None else states
    return [measurer(session.bank(state), objective) for state in chosen]


def _guided(session: Session, guidance: float) -> ObjectiveTables:
    return guided_objective(session.laboratory.schedule, guidance)


def _draws(session: Session) -> None:
    table = Table(
        "draws",
        "Relative efficiency by K",
        "Mean over states, by quadrature over a bank of draws; odd K included, where the last "
        "draw of the antithetic estimators stands alone.",
        ("guidance", "K", *VARIANCES),
    )
    found: dict[tuple[float, str, int], Measured] = {}
    for guidance in GUIDANCES:
        measurers = _measurers(session, _guided(session, guidance))
        for draws in _DRAWS:
            for name, variance in VARIANCES.items():
                values = [m(efficiency(variance, draws)) for m in measurers]
                found[guidance, name, draws] = mean_of(values)
            table.add(f"{guidance:g}", draws, *(found[guidance, name, draws] for name in VARIANCES))
    session.write(table)
    session.draw(
        "draws",
        "RE against iid uniform at the same K, mean over states (quadrature).",
        lambda path: plot_curves(
            {
                f"guidance {guidance:g}": {
                    name: (_DRAWS, [found[guidance, name, k] for k in _DRAWS], None)
                    for name in VARIANCES
                }
                for guidance in GUIDANCES
            },
            "K",
            "RE",
            path,
            log_x=True,
            baseline=1.0,
        ),
    )


def _agreement(session: Session) -> None:
    direct = session.tables.get("headline")
    if direct is None:
        return
    table = Table(
        "agreement",
        f"Replicates of the server's plans against quadrature, K = {_K}",
        "RE by replicates over RE by quadrature: mean over states, with the error of both. "
        "Quadrature interpolates its kernels in t and, for ours, takes the proposal from the "
        "bank's own second moments where the server learns it from past requests; it has no "
        "noise control variate, which the server's default adds where it helps.",
        ("guidance", "estimator", "replicates / quadrature", "largest |z| of a state"),
    )
    for guidance in GUIDANCES:
        objective = _guided(session, guidance)
        for name, variance in VARIANCES.items():
            quotients: list[Measured] = []
            for state, measure in zip(session.states, _measurers(session, objective), strict=True):
                (row,) = direct.where(
                    prompt=state.prompt, state=state.kind, guidance=f"{guidance:g}"
                )
                value = row[name]
                assert isinstance(value, Measured)
                quotients.append(value.over(measure(efficiency(variance, _K))))
            largest = max(abs(q.value - 1) / q.error for q in quotients)
            table.add(f"{guidance:g}", name, mean_of(quotients), round(largest, 1))
    session.write(table)


def _proposals(session: Session) -> None:
    def weight(k: Kernels) -> float:
        return iid_variance(k, k.uniform(), 1) / iid_variance(k, k.weight(), 1)

    def oracle(k: Kernels) -> float:
        return iid_variance(k, k.uniform(), 1) / iid_variance(k, k.oracle(), 1)

    table = Table(
        "proposals",
        "The weight heuristic against the oracle proposal",
        "RE against iid uniform: for iid draws (any K), and with strata and antithetic noise at "
        f"K = {_K}. The share is Var(oracle) / Var(weight) for iid draws. Floored is the oracle "
        "mixed with a tenth of the prior, as the server does; mean over states.",
        (
            "guidance", "weight, iid", "oracle, iid", "share",
            "weight + antithetic", "floored + antithetic", "oracle + antithetic",
        ),
    )  # fmt: skip
    for guidance in GUIDANCES:
        measurers = _measurers(session, _guided(session, guidance))
        statistics: list[Callable[[Kernels], float]] = [
            weight,
            oracle,
            lambda k: weight(k) / oracle(k),
            efficiency(VARIANCES["weight + antithetic"], _K),
            efficiency(VARIANCES["ours"], _K),
            efficiency(lambda k, n: strata_variance(k, k.oracle(), n, antithetic=True), _K),
        ]
        table.add(
            f"{guidance:g}",
            *(mean_of([m(statistic) for m in measurers]) for statistic in statistics),
        )
    session.write(table)


def _prompts(session: Session) -> None:
    table = Table(
        "prompts",
        f"Relative efficiency by prompt, K = {_K}",
        "One sample of the teacher for each prompt; by quadrature.",
        ("prompt", "guidance", *VARIANCES),
    )
    for state in session.samples:
        for guidance in GUIDANCES:
            (measure,) = _measurers(session, _guided(session, guidance), [state])
            table.add(
                state.prompt,
                f"{guidance:g}",
                *(measure(efficiency(variance, _K)) for variance in VARIANCES.values()),
            )
    session.write(table)


def _weightings(session: Session) -> None:
    table = Table(
        "weightings",
        f"Relative efficiency by weighting, K = {_K}",
        "Mean over states and the least, by quadrature. Where the weighting is uniform, the "
        "weight heuristic is uniform too.",
        ("weighting", "guidance", "paper", "least paper", "ours", "least ours"),
    )
    every: list[Measured] = []
    means: dict[tuple[str, str, float], Measured] = {}
    for label, (weighting, where) in WEIGHTINGS.items():
        for guidance in GUIDANCES:
            objective = guided_objective(session.laboratory.schedule, guidance, weighting, where)
            measurers = _measurers(session, objective)
            cells: list[Measured] = []
            for name in ("paper", "ours"):
                values = [m(efficiency(VARIANCES[name], _K)) for m in measurers]
                means[label, name, guidance] = mean_of(values)
                cells += [mean_of(values), least(values)]
                if name == "ours":
                    every += values
            table.add(label, f"{guidance:g}", *cells)
    session.write(table)
    where = f"all weightings, K = {_K}, by quadrature with known moments"
    session.replace_target(never_worse(where, every))
    labels = list(WEIGHTINGS)
    session.draw(
        "weightings",
        f"RE at K = {_K} by weighting, mean over states (quadrature).",
        lambda path: plot_curves(
            {
                f"guidance {guidance:g}": {
                    name: (
                        list(range(len(labels))),
                        [means[label, name, guidance] for label in labels],
                        None,
                    )
                    for name in ("ours", "paper")
                }
                for guidance in GUIDANCES
            },
            "",
            "RE against iid uniform",
            path,
            baseline=1.0,
            joined=False,
            ticks=[label.partition(",")[0].replace("dreamfusion_", "df ") for label in labels],
        ),
    )


def _difference(session: Session) -> None:
    table = Table(
        "difference",
        "Score differences (distribution matching): relative efficiency by K",
        "The estimand is E[eps_hat_c - eps_hat_u], d = 0, uniform weighting, t in 2 .. 98 %: the "
        "real-minus-fake score with the unconditional branch as the fake. The weighting being "
        "uniform, the paper's estimator is strata alone. Mean over states, by quadrature.",
        ("K", "paper (strata)", "ours"),
    )
    measurers = _measurers(session, difference_objective(session.laboratory.schedule))
    for draws in (1, 2, 4, 8, 16):
        table.add(
            draws,
            *(
                mean_of([m(efficiency(VARIANCES[name], draws)) for m in measurers])
                for name in ("paper", "ours")
            ),
        )
    session.write(table)


def _control(session: Session) -> None:
    table = Table(
        "control",
        "Noise control variate",
        "Variance without over variance with c(t) eps, c fitted; ours otherwise, the proposal "
        "following the second moment that is left. Mean over states, by quadrature; above 1 it "
        "helps.",
        ("guidance", *(f"K = {draws}" for draws in _CONTROL_DRAWS)),
    )
    for guidance in GUIDANCES:
        objective = _guided(session, guidance)
        gains: dict[int, list[Measured]] = {draws: [] for draws in _CONTROL_DRAWS}
        for state in session.states:
            bank = session.bank(state)
            off = measurer(bank, objective)
            on = measurer(bank, objective, noise_control(bank, objective))
            for draws in _CONTROL_DRAWS:
                gains[draws].append(_gain(off, on, draws))
        table.add(f"{guidance:g}", *(mean_of(values) for values in gains.values()))
    session.write(table)


def _gain(off: Measurer, on: Measurer, draws: int) -> Measured:
    """Var(off) / Var(on) with a joint jackknife, both being of one bank."""
    ours = VARIANCES["ours"]
    return jackknife(
        len(off.sums.counts), lambda b: ours(off.kernels(b), draws) / ours(on.kernels(b), draws)
    )
