"""Variance by independent replicates of the server's own plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from carv_server.bench.cells import Cell, Measured
from carv_server.bench.laboratory import Draws, Laboratory, request_plans
from carv_server.bench.methods import UNIFORM, Method
from carv_server.bench.states import State
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.past import Past
from carv_server.sampling.plan import Resolved, resolve

__all__ = ["Effort", "Seeds", "measure_fixed", "measure_resolved", "measure_uniform"]


@dataclass(frozen=True)
class Effort:
    """When a cell is done: at ``target`` relative standard error, or at ``most`` replicates."""

    target: float
    most: int
    batch: int = 32

    def done(self, cells: Sequence[Cell]) -> bool:
        count = min(cell.count for cell in cells)
        if count == 0:
            return False
        return count >= self.most or all(c.variance.relative <= self.target for c in cells)


class Seeds:
    """Seeds that no two requests share."""

    def __init__(self, first: int) -> None:
        self._next = first

    def take(self, count: int) -> range:
        found = range(self._next, self._next + count)
        self._next += count
        return found


def measure_uniform(
    laboratory: Laboratory,
    state: State,
    objectives: Mapping[str, ObjectiveTables],
    effort: Effort,
    seeds: Seeds,
) -> dict[str, Measured]:
    """tr Cov of one iid uniform draw under each objective; of a mean of K it is this over K.

    All objectives share their prior, and the draws: one bank serves them all.
    """
    first = next(iter(objectives.values()))
    resolved = resolve(UNIFORM.sampling, first, None, 1)
    found = _measure(laboratory, state, resolved, objectives, 1, effort, seeds, per_batch=8)
    return found


def measure_fixed(
    laboratory: Laboratory,
    state: State,
    method: Method,
    objectives: Mapping[str, ObjectiveTables],
    draws: int,
    effort: Effort,
    seeds: Seeds,
) -> dict[str, Measured]:
    """tr Cov of an estimate from K draws by a method that learns nothing, under each objective;
    all share prior and weighting, so that the same draws serve them all."""
    resolved = resolve(method.sampling, next(iter(objectives.values())), None, draws)
    return _measure(laboratory, state, resolved, objectives, draws, effort, seeds)


def measure_resolved(
    laboratory: Laboratory,
    state: State,
    method: Method,
    objective: ObjectiveTables,
    past: Past | None,
    draws: int,
    effort: Effort,
    seeds: Seeds,
) -> Measured:
    """tr Cov of an estimate from K draws planned on a fixed past, or on none."""
    resolved = resolve(method.sampling, objective, past, draws)
    found = _measure(laboratory, state, resolved, {"": objective}, draws, effort, seeds)
    return found[""]


def _measure(
    laboratory: Laboratory,
    state: State,
    resolved: Resolved,
    objectives: Mapping[str, ObjectiveTables],
    draws: int,
    effort: Effort,
    seeds: Seeds,
    per_batch: int = 1,
) -> dict[str, Measured]:
    """``per_batch``: replicates are cheap, so take so many times more of them."""
    cells = {name: Cell() for name in objectives}
    effort = Effort(effort.target, effort.most * per_batch, effort.batch * per_batch)
    objective = next(iter(objectives.values()))
    while not effort.done(list(cells.values())):
        batch = evaluate_requests(
            laboratory, state, resolved, objective, draws, seeds.take(effort.batch)
        )
        for name, each in objectives.items():
            cells[name].add(batch.estimates(each))
    return {name: cell.variance for name, cell in cells.items()}


def evaluate_requests(
    laboratory: Laboratory,
    state: State,
    resolved: Resolved,
    objective: ObjectiveTables,
    draws: int,
    seeds: range,
) -> Draws:
    """One request of one render for each seed."""
    plan = request_plans(resolved, objective, 1, draws, seeds)
    latents = np.broadcast_to(state.latents, (len(seeds), laboratory.size)).copy()
    return laboratory.evaluate(plan, latents, [state.conditioning], seeds.start)
