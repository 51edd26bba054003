"""A plan's draws as the rows of a ``Work``, in the order in which replicas sum them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from carv_server.replicas.protocol import Branch, Work
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import DrawPlan

__all__ = ["make_work", "planned_order"]

Float32Array = npt.NDArray[np.float32]

_MOST_ORDERED = 4096  # draws of a plan whose order is kept


def planned_order(plan: DrawPlan) -> npt.NDArray[np.int64]:
    """Flat draw indices, renders in order and the draws of a cell next to each other."""
    if plan.draws == 1:
        return np.arange(plan.renders)
    sort = _kept_order if plan.groups.size <= _MOST_ORDERED else _order
    return sort(plan.renders, plan.groups.tobytes(), plan.cells.tobytes())


def _order(renders: int, groups: bytes, cells: bytes) -> npt.NDArray[np.int64]:
    by_group, by_cell = (np.frombuffer(each, dtype=np.int64) for each in (groups, cells))
    render = np.repeat(np.arange(renders), len(by_group) // renders)
    order = np.lexsort((by_group, by_cell, render))
    order.flags.writeable = False
    return order


# A run's requests are of one size, and most plans of one size are alike.
_kept_order = lru_cache(maxsize=64)(_order)


def make_work(
    plan: DrawPlan,
    latents: Float32Array,
    reference_latents: Float32Array | None,
    branches: Sequence[Branch],
    objective: ObjectiveTables | None,
    seed: int,
    noisy: bool = False,
) -> Work:
    """All draws of a request, cells contiguous. Without an objective: predictions are kept."""
    make = _one_row if plan.timesteps.size == 1 else _rows
    integers, floats = make(plan, len(branches), objective)
    return Work(
        seed=seed,
        latents=latents,
        reference_latents=reference_latents,
        branches=branches,
        renders=integers[0],
        timesteps=integers[1],
        noise_indices=integers[2],
        groups=integers[3],
        cells=integers[4],
        signs=floats[0],
        scales=floats[2],
        branch_coefficients=floats[4:],
        noise_coefficients=floats[3],
        control_coefficients=floats[1],
        latents_are_noisy=noisy,
        keep_predictions=objective is None,
    )


def _rows(
    plan: DrawPlan, branches: int, objective: ObjectiveTables | None
) -> tuple[npt.NDArray[np.int64], Float32Array]:
    """All that goes by draw in two arrays, as ``make_work`` takes them apart: making one costs as
    much as filling it."""
    order = planned_order(plan)

    def in_order(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        flat = values.reshape(-1)
        return flat[order] if plan.draws > 1 else flat

    t = in_order(plan.timesteps)
    integers = np.empty((5, len(order)), dtype=np.int64)
    integers[0] = order // plan.draws
    integers[1] = t
    for row, values in enumerate((plan.noise_indices, plan.groups, plan.cells), 2):
        integers[row] = in_order(values)
    floats = np.empty((4 + branches, len(order)), dtype=np.float32)
    floats[0] = in_order(plan.signs)
    floats[1] = in_order(plan.control_coefficients)
    if objective is None:
        floats[2], floats[3], floats[4:] = 1.0, 0.0, 1.0
    else:
        floats[2] = in_order(plan.importance_weights) * objective.weighting[t]
        floats[3] = objective.noise_coefficient[t]
        floats[4:] = objective.branch_coefficients[:, t]
    return integers, floats


def _one_row(
    plan: DrawPlan, branches: int, objective: ObjectiveTables | None
) -> tuple[npt.NDArray[np.int64], Float32Array]:
    """``_rows`` of one draw, by Python's numbers: numpy's calls would take three times as long."""
    t = plan.timesteps.item()
    integers = np.array(
        [[0], [t], [plan.noise_indices.item()], [plan.groups.item()], [plan.cells.item()]]
    )
    by_draw = [plan.signs.item(), plan.control_coefficients.item()]
    if objective is None:
        by_draw += [1.0, 0.0, *[1.0] * branches]
    else:
        by_draw.append(plan.importance_weights.item() * objective.weighting.item(t))
        by_draw.append(objective.noise_coefficient.item(t))
        by_draw += objective.branch_coefficients[:, t].tolist()
    return integers, np.array(by_draw, dtype=np.float32)[:, np.newaxis]
