"""Weightings and estimands by replicates of the server's own plans."""

from __future__ import annotations

from carv_server.bench.breadth_section import WEIGHTINGS
from carv_server.bench.cells import Measured
from carv_server.bench.direct import measure_fixed, measure_resolved, measure_uniform
from carv_server.bench.headline_section import never_worse
from carv_server.bench.methods import OURS, PAPER, difference_objective, guided_objective
from carv_server.bench.serving import Chain
from carv_server.bench.session import Session
from carv_server.bench.settings import WARM_DRAWS
from carv_server.bench.tables import Table
from carv_server.sampling.objective import ObjectiveTables

__all__ = ["measure_weightings"]

_GUIDANCE = 7.5
_DRAWS = (1, 2, 3, 8)
_SEED = 1 << 42


def measure_weightings(session: Session) -> None:
    """Table ``weightings_direct``: every weighting, and the score difference."""
    schedule = session.laboratory.schedule
    objectives: dict[str, ObjectiveTables] = {
        label: guided_objective(schedule, _GUIDANCE, weighting, where)
        for label, (weighting, where) in WEIGHTINGS.items()
    }
    objectives["score difference"] = difference_objective(schedule)
    table = Table(
        "weightings_direct",
        "Relative efficiency by estimand, replicates of the server's plans",
        f"As the headline, at guidance {_GUIDANCE:g}, for a few of the states; the score "
        "difference is eps_hat_c - eps_hat_u without weighting. Cold is the first request of a "
        "history, which has no past: at K = 1 it is iid uniform itself, and what differs is noise.",
        ("estimand", "prompt", "state", "K", "paper", "ours, cold", "ours"),
    )
    ours_of_all: list[Measured] = []
    cold_of_all: list[Measured] = []
    count = session.scale.direct_states
    states = session.states[:: max(1, len(session.states) // count)][:count]
    pairs = [(label, state) for label in objectives for state in states]
    session.say("estimands: past requests")
    chains = [
        Chain(
            f"estimands {label} {state.name}",
            state.latents[None],
            [state.conditioning],
            objectives[label],
            WARM_DRAWS,
        )
        for label, state in pairs
    ]
    warmed = session.server.warm(chains, session.scale.warm_requests, _SEED)
    pasts = {(label, state.name): past for (label, state), past in zip(pairs, warmed, strict=True)}
    for label, objective in objectives.items():
        for state in states:
            session.say(f"estimands: {label}, {state.name}")
            laboratory, effort, seeds = session.laboratory, session.scale.effort, session.seeds
            one = {"": objective}
            past = pasts[label, state.name]
            uniform = measure_uniform(laboratory, state, one, effort, seeds)[""]
            for draws in _DRAWS:
                base = uniform.scaled(1 / draws)
                paper = measure_fixed(laboratory, state, PAPER, one, draws, effort, seeds)[""]
                cold, warm = (
                    base.over(
                        measure_resolved(
                            laboratory, state, OURS, objective, known, draws, effort, seeds
                        )
                    )
                    for known in (None, past)
                )
                ours_of_all.append(warm)
                if draws > 1:
                    cold_of_all.append(cold)
                row = (label, state.prompt, state.kind, draws, base.over(paper), cold, warm)
                table.add(*row)
            session.write(table)
    session.replace_target(never_worse("all estimands and K, by replicates", ours_of_all))
    session.replace_target(never_worse("a history's first request, K > 1", cold_of_all))
