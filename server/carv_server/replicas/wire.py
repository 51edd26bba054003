"""Works and results as plain types and numpy arrays, to cross into another process.

The rows of a whole microbatch travel in three arrays. Latents and conditioning tensors travel
apart from them: a packet only says which of either each work uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from carv_server.replicas.protocol import (
    Branch,
    Conditioning,
    MicrobatchResult,
    NonFiniteDraw,
    Work,
    WorkResult,
)
from carv_server.sampling.reduce import Moments, Reduction

__all__ = [
    "PackedWorks",
    "ResultPacket",
    "WorkPacket",
    "pack_results",
    "pack_works",
    "unpack_results",
    "unpack_works",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


class WorkPacket(TypedDict):
    """A microbatch of W works with N draws in all.

    Keys:
        heads: by work: seed, draws, index of its latents, index of its reference latents or -1,
            whether it has streams, latents_are_noisy, keep_predictions.
        branches: by work and branch: use_reference, and indices of its conditionings' handles.
        handles: distinct.
        indices: int64 [6, N]: renders, timesteps, noise_indices, groups, cells, streams.
        values: float32 [4, N]: signs, scales, noise and control coefficients.
        branch_coefficients: float32, [B, n] of each work, flat, one after the other.
    """

    heads: list[tuple[int, int, int, int, bool, bool, bool]]
    branches: list[list[tuple[bool, list[int]]]]
    handles: list[str]
    indices: Int64Array
    values: Float32Array
    branch_coefficients: Float32Array


class PackedWorks(NamedTuple):
    """A packet with what travels apart: distinct latents, conditionings by handle."""

    packet: WorkPacket
    latents: list[Float32Array]
    conditionings: dict[str, Conditioning]


class ResultPacket(TypedDict):
    """Results of W works.

    Keys:
        seconds: of the forward.
        failures: by work, (render, timestep, noise_index).
        predictions: by work, float32 [n, *event_shape].
        residual_rows: by work, rows of ``residuals``; -1 for none.
        residuals: float64 [., 3].
        reduced: works that have a reduction.
        moment_keys: int64 [M, 4]: work, render, group size, count.
        means: float64 [M, D], exact; ``single``: which of them are float32, as of one draw.
        deviations: float64 [M].
        spread_keys, twin_keys: int64 [., 2]: work, render.
        spreads, twins: float64.
    """

    seconds: float
    failures: dict[int, tuple[int, int, int]]
    predictions: dict[int, Float32Array]
    residual_rows: list[int]
    residuals: Float64Array
    reduced: list[int]
    moment_keys: Int64Array
    means: Float64Array
    single: list[bool]
    deviations: Float64Array
    spread_keys: Int64Array
    spreads: Float64Array
    twin_keys: Int64Array
    twins: Float64Array


def pack_works(works: Sequence[Work]) -> PackedWorks:
    """Arrays keep their bits; latents that several works share are listed once."""
    latents: list[Float32Array] = []
    conditionings: dict[str, Conditioning] = {}
    slots: dict[int, int] = {}
    handles: dict[str, int] = {}

    def slot(array: Float32Array | None) -> int:
        if array is None:
            return -1
        if id(array) not in slots:
            slots[id(array)] = len(latents)
            latents.append(array)
        return slots[id(array)]

    def index(conditioning: Conditioning) -> int:
        conditionings.setdefault(conditioning.handle, conditioning)
        return handles.setdefault(conditioning.handle, len(handles))

    packet = WorkPacket(
        heads=[
            (
                work.seed,
                len(work.renders),
                slot(work.latents),
                slot(work.reference_latents),
                work.streams is not None,
                work.latents_are_noisy,
                work.keep_predictions,
            )
            for work in works
        ],
        branches=[
            [(b.use_reference, [index(c) for c in b.conditionings]) for b in work.branches]
            for work in works
        ],
        handles=list(handles),
        indices=np.concatenate([np.stack(_indices(work)) for work in works], axis=1),
        values=np.concatenate([np.stack(_values(work)) for work in works], axis=1),
        branch_coefficients=np.concatenate(
            [work.branch_coefficients.reshape(-1) for work in works]
        ),
    )
    return PackedWorks(packet, latents, conditionings)


def _indices(work: Work) -> list[Int64Array]:
    streams = np.zeros_like(work.renders) if work.streams is None else work.streams
    return [work.renders, work.timesteps, work.noise_indices, work.groups, work.cells, streams]


def _values(work: Work) -> list[Float32Array]:
    return [work.signs, work.scales, work.noise_coefficients, work.control_coefficients]


def unpack_works(
    packet: WorkPacket,
    latents: Sequence[Float32Array],
    conditioning: Callable[[str], Conditioning],
) -> list[Work]:
    """The works that were packed.

    Args:
        latents: in the packet's order.
        conditioning: of a handle.
    """
    known = [conditioning(handle) for handle in packet["handles"]]
    # Copies: what arrives is read-only memory, which torch refuses to share quietly.
    indices, values = packet["indices"].copy(), packet["values"].copy()
    coefficients = packet["branch_coefficients"].copy()
    works: list[Work] = []
    row = flat = 0
    for head, branches in zip(packet["heads"], packet["branches"], strict=True):
        seed, draws, own, reference, has_streams, noisy, keep = head
        rows, size = slice(row, row + draws), draws * len(branches)
        renders, timesteps, noise_indices, groups, cells, streams = indices[:, rows]
        signs, scales, noise, control = values[:, rows]
        works.append(
            Work(
                seed=seed,
                latents=latents[own],
                reference_latents=latents[reference] if reference >= 0 else None,
                branches=[Branch([known[i] for i in which], use) for use, which in branches],
                renders=renders,
                timesteps=timesteps,
                noise_indices=noise_indices,
                groups=groups,
                cells=cells,
                signs=signs,
                scales=scales,
                branch_coefficients=coefficients[flat : flat + size].reshape(len(branches), draws),
                noise_coefficients=noise,
                control_coefficients=control,
                streams=streams if has_streams else None,
                latents_are_noisy=noisy,
                keep_predictions=keep,
            )
        )
        row, flat = row + draws, flat + size
    return works


def pack_results(microbatch: MicrobatchResult) -> ResultPacket:
    """NaN, the order of renders and every bit are kept."""
    assert None not in microbatch.results, "a worker computes all that it is sent"
    results = [(i, r) for i, r in enumerate(microbatch.results) if r is not None]
    reductions = [(i, r.reduction) for i, r in results if r.reduction is not None]
    moments = [
        (i, render, size, m) for i, r in reductions for (render, size), m in r.moments.items()
    ]
    residuals = [r.residuals for _, r in results if r.residuals is not None]
    spreads = [(i, render, v) for i, r in reductions for render, v in r.spreads.items()]
    twins = [(i, render, v) for i, r in reductions for render, v in r.twins.items()]
    return ResultPacket(
        seconds=microbatch.seconds,
        failures={
            i: (r.failure.render, r.failure.timestep, r.failure.noise_index)
            for i, r in results
            if r.failure is not None
        },
        predictions={i: r.predictions for i, r in results if r.predictions is not None},
        residual_rows=[-1 if r.residuals is None else len(r.residuals) for _, r in results],
        residuals=np.concatenate(residuals) if residuals else np.empty((0, 3)),
        reduced=[i for i, _ in reductions],
        moment_keys=_table([(i, render, size, m.count) for i, render, size, m in moments], 4),
        single=[m.mean.dtype == torch.float32 for *_, m in moments],
        means=torch.stack([m.mean.double() for *_, m in moments]).numpy()
        if moments
        else np.empty((0, 0)),
        deviations=np.array([m.deviation for *_, m in moments]),
        spread_keys=_table([(i, render) for i, render, _ in spreads], 2),
        spreads=np.array([value for *_, value in spreads]),
        twin_keys=_table([(i, render) for i, render, _ in twins], 2),
        twins=np.array([value for *_, value in twins]),
    )


def unpack_results(packet: ResultPacket) -> MicrobatchResult:
    """Copies out of the memory that the packet arrived in, so that it is free again."""
    means = torch.from_numpy(packet["means"].copy())
    reductions = {i: Reduction({}, {}, {}) for i in packet["reduced"]}
    keys: list[list[int]] = packet["moment_keys"].tolist()
    deviations: list[float] = packet["deviations"].tolist()
    for (i, render, size, count), mean, single, deviation in zip(
        keys, means, packet["single"], deviations, strict=True
    ):
        reductions[i].moments[render, size] = Moments(
            count, mean.float() if single else mean, deviation
        )
    _fill({i: r.spreads for i, r in reductions.items()}, packet["spread_keys"], packet["spreads"])
    _fill({i: r.twins for i, r in reductions.items()}, packet["twin_keys"], packet["twins"])
    residuals = packet["residuals"].copy()
    ends = accumulate((max(rows, 0) for rows in packet["residual_rows"]), initial=0)
    results: list[WorkResult] = []
    for i, (start, stop) in enumerate(pairwise(ends)):
        failure, predictions = packet["failures"].get(i), packet["predictions"].get(i)
        results.append(
            WorkResult(
                reduction=reductions.get(i),
                residuals=residuals[start:stop] if packet["residual_rows"][i] >= 0 else None,
                predictions=None if predictions is None else predictions.copy(),
                failure=None if failure is None else NonFiniteDraw(*failure),
            )
        )
    return MicrobatchResult(results, packet["seconds"])


def _fill(targets: Mapping[int, dict[int, float]], keys: Int64Array, values: Float64Array) -> None:
    pairs: list[list[int]] = keys.tolist()
    numbers: list[float] = values.tolist()
    for (i, render), value in zip(pairs, numbers, strict=True):
        targets[i][render] = value


def _table(rows: Sequence[tuple[int, ...]], columns: int) -> Int64Array:
    return np.array(rows, dtype=np.int64).reshape(-1, columns)
