"""RefineGradient at a target of 5 %: draws against an oracle's K, and whether the claim holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from carv_server.bench.cells import Cell, Measured, mean_of
from carv_server.bench.direct import Effort, measure_resolved
from carv_server.bench.figures import Curve, plot_curves
from carv_server.bench.headline_section import at_most
from carv_server.bench.methods import OURS, guided_objective
from carv_server.bench.serving import Chain
from carv_server.bench.session import Session
from carv_server.bench.settings import WARM_DRAWS
from carv_server.bench.states import State
from carv_server.bench.tables import Table
from carv_server.bench.targets import Target

__all__ = ["measure_refinement", "oracle_draws"]

_GUIDANCE = 7.5
_TARGET = 0.05
_MOST = 4096
_SEED = 1 << 43


def measure_refinement(session: Session) -> None:
    """Table and figure ``refine``."""
    objective = guided_objective(session.laboratory.schedule, _GUIDANCE)
    table = Table(
        "refine",
        f"RefineGradient at a relative standard error of {_TARGET:.0%}",
        "Runs of one render each, from a warm history. Draws are the mean of those spent; the "
        "oracle's are the fixed K of the server's default, planned on the same past, whose true "
        "relative standard error meets the target, from as many replicates at about the mean "
        "spent. True error is sqrt(tr Cov over runs) / ||g||, which a client cannot know; stated "
        "error is the root mean square of what the answers say. Kept is the true error over the "
        "target.",
        (
            "prompt", "state", "runs", "draws", "oracle K", "draws / oracle", "true error, %",
            "stated error, %", "true² / stated²", "kept",
        ),
    )  # fmt: skip
    states = session.states
    runs = max(8, session.scale.refine_runs // len(states))
    ratios: list[Measured] = []
    kept: list[Measured] = []
    claims: list[Measured] = []
    chains = [
        Chain(
            f"refine {state.name}",
            state.latents[None],
            [state.conditioning],
            objective,
            WARM_DRAWS,
        )
        for state in states
    ]
    session.say("refining: past requests")
    session.server.warm(chains, session.scale.warm_requests, _SEED)
    for state, chain in zip(states, chains, strict=True):
        session.say(f"refining: {state.name}")
        answers = session.server.refine(chain, _TARGET, _MOST, session.seeds.take(runs))
        spent = _mean([float(answer.draws_spent) for answer in answers])
        cell = Cell()
        cell.add(np.stack([answer.gradient.reshape(-1) for answer in answers]).astype(float))
        nearby = 2 * round(spent.value / 2)
        oracle = _oracle(session, state, chain, nearby, cell, runs)
        ratio = spent.over(oracle)
        true = relative_error(cell)
        stated = [float(answer.relative_standard_error[0]) for answer in answers]
        said = _root(_mean([error**2 for error in stated]))
        quotient = true.over(said)
        claim = Measured(quotient.value**2, 2 * quotient.value * quotient.error)
        claims.append(claim)
        share = true.scaled(1 / _TARGET)
        ratios.append(ratio)
        kept.append(share)
        table.add(
            state.prompt,
            state.kind,
            runs,
            spent,
            oracle,
            ratio,
            true.scaled(100),
            said.scaled(100),
            claim,
            share,
        )
        session.write(table)
    prompts = list(dict.fromkeys(state.prompt for state in states))
    kinds = list(dict.fromkeys(state.kind for state in states))
    session.draw(
        "refine",
        f"RefineGradient at {_TARGET:.0%}: draws spent over the oracle's K, and the true error "
        "over the target, by state.",
        lambda path: plot_curves(
            {prompt: _curves(states, prompt, ratios, kept) for prompt in prompts},
            "",
            "ratio",
            path,
            baseline=1.0,
            ticks=kinds,
            joined=False,
        ),
    )
    total = runs * len(states)
    session.replace_target(
        at_most(f"refine: draws ≤ 1.1 × the oracle's K at {_TARGET:.0%}", mean_of(ratios), 1.1)
    )
    square = _root(mean_of([Measured(k.value**2, 2 * k.value * k.error) for k in kept]))
    session.replace_target(
        at_most(f"refine: true error ≤ 1.05 × the target, {total} runs", square, 1.05)
    )
    said = mean_of(claims)
    session.replace_target(
        Target(
            f"refine: true variance within 10 % of the stated one, {total} runs",
            f"{said.value:.3f} ± {said.error:.3f}",
            abs(said.value - 1) <= 0.1,
        )
    )


def _curves(
    states: Sequence[State],
    prompt: str,
    ratios: Sequence[Measured],
    kept: Sequence[Measured],
) -> dict[str, Curve]:
    kinds = list(dict.fromkeys(state.kind for state in states))
    chosen = [i for i, state in enumerate(states) if state.prompt == prompt]
    places = [kinds.index(states[i].kind) for i in chosen]
    return {
        "draws / oracle K": (places, [ratios[i] for i in chosen], None),
        "true error / target": (places, [kept[i] for i in chosen], None),
    }


def relative_error(cell: Cell) -> Measured:
    """sqrt(tr Cov) / ||E x|| of one replicate."""
    variance = cell.variance
    value = math.sqrt(variance.value / cell.squared_mean)
    # ||E x|| is known sqrt(count) times better than the variance's root.
    return Measured(value, value * variance.relative / 2)


def oracle_draws(
    draws: int, variance: Measured, squared_gradient: float, target: float
) -> Measured:
    """The K at which a plan of fixed size meets the target, from its variance at a K nearby:
    W falls as 1/K, but for 1.4/K of itself."""
    return variance.scaled(draws / (target**2 * squared_gradient))


def _oracle(
    session: Session, state: State, chain: Chain, draws: int, cell: Cell, runs: int
) -> Measured:
    past, effort = session.server.past(chain), Effort(0.0, runs)
    variance = measure_resolved(
        session.laboratory, state, OURS, chain.objective, past, draws, effort, session.seeds
    )
    return oracle_draws(draws, variance, cell.squared_mean, _TARGET)


def _mean(values: list[float]) -> Measured:
    array = np.asarray(values)
    return Measured(float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array)))


def _root(square: Measured) -> Measured:
    root = math.sqrt(square.value)
    return Measured(root, square.error / (2 * root))
