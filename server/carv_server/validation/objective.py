"""Objective messages to tables on the teacher's grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carv.v1 import objective_pb2 as pb
from carv_server.sampling.objective import (
    DEFAULT_RANGE,
    NamedWeighting,
    ObjectiveTables,
    prior_from_mass,
    prior_on_range,
    weighting_values,
)
from carv_server.sampling.schedule import Schedule
from carv_server.validation.checks import Violations, coefficient_table, finite_table
from carv_server.validation.recent import Recent

__all__ = ["NAMED_WEIGHTINGS", "ObjectiveCache", "check_objective"]

Float64Array = npt.NDArray[np.float64]

_FLOAT64_MAX = float(np.finfo(np.float64).max)

NAMED_WEIGHTINGS = {
    pb.NAMED_WEIGHTING_UNSPECIFIED: NamedWeighting.SDS,
    pb.NAMED_WEIGHTING_SDS: NamedWeighting.SDS,
    pb.NAMED_WEIGHTING_UNIFORM: NamedWeighting.UNIFORM,
    pb.NAMED_WEIGHTING_FANTASIA3D: NamedWeighting.FANTASIA3D,
    pb.NAMED_WEIGHTING_DREAMFUSION_SQRT: NamedWeighting.DREAMFUSION_SQRT,
    pb.NAMED_WEIGHTING_X0: NamedWeighting.X0,
    pb.NAMED_WEIGHTING_SCORE: NamedWeighting.SCORE,
}


_MOST_OBJECTIVES = 64
_LARGEST_KEY_BYTES = 64 * 1024


class ObjectiveCache:
    """Tables of the objectives that a teacher's requests named last, so that a run of requests
    shares them, and what is derived from them. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tables = Recent[tuple[bytes, ...], ObjectiveTables](_MOST_OBJECTIVES)

    def check(
        self,
        message: pb.Objective,
        schedule: Schedule,
        max_branches: int,
        violations: Violations,
    ) -> ObjectiveTables | None:
        """As ``check_objective``; schedule and limit are the same in every call."""
        key = _table_key(message)
        if sum(map(len, key)) > _LARGEST_KEY_BYTES:
            return check_objective(message, schedule, max_branches, violations)
        tables = self._tables.get(key)
        if tables is None:
            tables = check_objective(message, schedule, max_branches, violations)
            if tables is not None:
                self._tables.put(key, tables)
        return tables


def _table_key(message: pb.Objective) -> tuple[bytes, ...]:
    """All that the tables depend on: no conditionings, which change with every view, and no
    latents."""
    return (
        # What is not set and what is empty are two: only the latter is a violation.
        b"set" if message.HasField("noise_coefficient") else b"",
        message.noise_coefficient.SerializeToString(),
        message.prior.SerializeToString(),
        message.weighting.SerializeToString(),
        *[branch.coefficient.SerializeToString() for branch in message.branches],
    )


def check_objective(
    message: pb.Objective, schedule: Schedule, max_branches: int, violations: Violations
) -> ObjectiveTables | None:
    """Coefficients, weighting and prior on the grid, or None with violations.

    Branches' conditionings and reference latents are checked with the latents.
    """
    timesteps = len(schedule)
    branches = _branch_coefficients(message, timesteps, max_branches, violations)
    noise: Float64Array | None = np.zeros(timesteps)
    if message.HasField("noise_coefficient"):
        noise = coefficient_table(
            message.noise_coefficient, "objective.noise_coefficient", timesteps, violations
        )
    prior = _prior(message, timesteps, violations)
    weighting = _weighting(message, schedule, prior, violations)
    if branches is None or noise is None or prior is None or weighting is None:
        return None
    return ObjectiveTables(prior, weighting, branches, noise)


def _branch_coefficients(
    message: pb.Objective, timesteps: int, max_branches: int, violations: Violations
) -> Float64Array | None:
    count = len(message.branches)
    if not 1 <= count <= max_branches:
        violations.add("objective.branches", f"{count} branches; there must be 1 .. {max_branches}")
        return None
    tables = [
        coefficient_table(
            branch.coefficient, f"objective.branches[{i}].coefficient", timesteps, violations
        )
        for i, branch in enumerate(message.branches)
    ]
    found = [table for table in tables if table is not None]
    return np.stack(found) if len(found) == count else None


def _prior(message: pb.Objective, timesteps: int, violations: Violations) -> Float64Array | None:
    match message.prior.WhichOneof("kind"):
        case "range":
            low, high = message.prior.range.min_fraction, message.prior.range.max_fraction
            # NaN fails every comparison and lands here too.
            if not 0.0 <= low <= high <= 1.0:
                violations.add(
                    "objective.prior.range",
                    f"min_fraction {low}, max_fraction {high}; must hold "
                    "0 <= min_fraction <= max_fraction <= 1",
                )
                return None
            return prior_on_range(timesteps, low, high)
        case "table":
            field = "objective.prior.table.mass"
            mass = finite_table(
                message.prior.table.mass, field, timesteps, violations, largest=_FLOAT64_MAX
            )
            if mass is None:
                return None
            try:
                return prior_from_mass(mass)
            except ValueError as error:
                violations.add(field, str(error))
                return None
        case _:
            return prior_on_range(timesteps, *DEFAULT_RANGE)


def _weighting(
    message: pb.Objective,
    schedule: Schedule,
    prior: Float64Array | None,
    violations: Violations,
) -> Float64Array | None:
    if message.weighting.WhichOneof("kind") == "table":
        field = "objective.weighting.table.values"
        values = finite_table(message.weighting.table.values, field, len(schedule), violations)
    else:
        field = "objective.weighting.named"
        name = NAMED_WEIGHTINGS.get(message.weighting.named)
        if name is None:
            known = ", ".join(pb.NamedWeighting.keys()[1:])
            violations.add(field, f"unknown value {message.weighting.named}; known: {known}")
            return None
        values = weighting_values(name, schedule)
    if values is None or prior is None:
        return values
    infinite = np.flatnonzero((prior > 0) & ~np.isfinite(values))
    if len(infinite):
        violations.add(
            field,
            f"infinite at timestep {int(infinite[0])}, where alpha or sigma is zero; narrow the "
            "prior or choose another weighting",
        )
        return None
    return values
