"""The works of a microbatch as a few arrays of all their rows, carried to the device in two
transfers: the latents in use, and everything else.

Draws are those of all works one after another, works with more branches first. So the draws that
have a j-th branch are always the first so many, and rows (branch by branch) need no tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise, repeat
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from carv_server.replicas.protocol import Conditioning, Work
from carv_server.sampling.schedule import Schedule

__all__ = ["Staged", "pack", "stage", "unpack"]

T = TypeVar("T", bound=np.generic)

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

_FLOATS = np.dtype(np.float32)
_FIRST = np.zeros(1, dtype=np.int64)


class Values(Protocol):
    """Tensors by name."""

    def __getitem__(self, name: str, /) -> torch.Tensor: ...


@dataclass(frozen=True)
class Staged:
    """A microbatch of n draws and m rows, on the device but for what the host decides by.

    Attributes:
        works: in the order of their draws; ``positions`` are their places in the microbatch.
        bounds: the i-th work's draws are ``bounds[i] .. bounds[i + 1]``.
        draws_with: for each branch, how many draws have it.
        latents: float32 [u, *event_shape], every work's renders in use, reference latents too.
        values: by name, on the device. By distinct eps: noise_seeds [e, 2], noise_renders and
            noise_indices [e], int64. By draw, int64 [n]: noise and latents (indices of the
            above); float32 [n]: alpha, sigma, signs, scales, noise_coefficients and
            control_coefficients. By row: row_timesteps and row_conditionings, int64 [m];
            branch_coefficients, float32 [m]. With references: reference_draws and
            reference_latents, int64 [f], and row_noisy, int64 [m], the row's index in the
            draws' z_t followed by those draws' z_t at the reference. What no step will ask
            for is left out: of noise where ``all_noisy``, of the integrand where every work
            keeps its predictions, ``noise`` where none is shared.
        conditionings: the distinct ones.
        shares_noise, shares_latents: whether draws have eps or latents in common; else the i-th
            draw has the i-th.
        noise_block: draws of each eps, where these are neighbours and equally many; 0 elsewhere.
        all_noisy: whether every work's latents are z_t, or nothing is made of them: no eps is used.
        has_references, has_control: whether any row is at a reference; whether any control
            coefficient is not zero.
        scales, control_coefficients: float32 [n], on the host too.
        ready: recorded behind the transfers, where they went over a stream of their own.
    """

    works: Sequence[Work]
    positions: Sequence[int]
    bounds: Sequence[int]
    draws_with: Sequence[int]
    latents: torch.Tensor
    values: Values
    conditionings: Sequence[Conditioning]
    shares_noise: bool
    noise_block: int
    shares_latents: bool
    all_noisy: bool
    has_references: bool
    has_control: bool
    scales: Float32Array
    control_coefficients: Float32Array
    ready: torch.cuda.Event | None = None


def stage(
    works: Sequence[Work],
    schedule: Schedule,
    device: torch.device,
    stream: torch.cuda.Stream | None = None,
    arithmetic: bool = True,
) -> Staged:
    """Lay out and send a microbatch.

    Args:
        stream: what the transfers go over, beside the computation on the device; None sends them
            ahead of it.
        arithmetic: as in ``TeacherDescription``.
    """
    positions = sorted(range(len(works)), key=lambda i: -len(works[i].branches))
    ordered = [works[i] for i in positions]
    sizes = [len(work.renders) for work in ordered]
    bounds = [0, *accumulate(sizes)]
    draws = bounds[-1]
    draws_with = [
        bounds[sum(len(work.branches) > j for work in ordered)]
        for j in range(len(ordered[0].branches))
    ]
    arrays: dict[str, npt.NDArray[Any]] = {}

    def joined(values: Callable[[Work], npt.NDArray[T]]) -> npt.NDArray[T]:
        return _joined([values(work) for work in ordered])

    t = joined(lambda work: work.timesteps)
    # A copy, which is the teacher's to do with as it likes.
    arrays["row_timesteps"] = np.concatenate([t[:count] for count in draws_with])
    renders = joined(lambda work: work.renders)
    renders_of = [renders[a:b] for a, b in pairwise(bounds)]
    shares_noise, noise_block = False, 1
    all_noisy = not arithmetic or all(work.latents_are_noisy for work in ordered)
    if not all_noisy:
        arrays["alpha"], arrays["sigma"] = (table[t] for table in _tables(schedule))
        for work, (a, b) in zip(ordered, pairwise(bounds), strict=True):
            if work.latents_are_noisy:  # z_t already: one times itself
                arrays["alpha"][a:b], arrays["sigma"][a:b] = 1.0, 0.0
        indices = joined(lambda work: work.noise_indices)
        arrays["signs"] = joined(lambda work: work.signs)
        noise = _noise_tables(ordered, sizes, renders, indices)
        shares_noise = len(noise["noise_renders"]) < draws
        noise_block = _block(noise["noise"].tolist()) if shares_noise else 1
        arrays |= noise
    scales = joined(lambda work: work.scales)
    control = joined(lambda work: work.control_coefficients)
    if arithmetic and not all(work.keep_predictions for work in ordered):
        arrays["scales"], arrays["control_coefficients"] = scales, control
        arrays["noise_coefficients"] = joined(lambda work: work.noise_coefficients)
        arrays["branch_coefficients"] = _joined(
            [
                work.branch_coefficients[j]
                for j in range(len(draws_with))
                for work in ordered
                if len(work.branches) > j
            ]
        )
    latents = _LatentTable(ordered, renders_of)
    arrays |= latents.arrays
    has_references = any(b.use_reference for work in ordered for b in work.branches) and (
        "reference_draws" in arrays
    )
    if has_references:
        arrays["row_noisy"] = _row_sources(ordered, bounds, draws_with)
    conditionings, arrays["row_conditionings"] = _conditioning_table(
        ordered, renders_of, len(draws_with)
    )

    staged_latents, values, ready = _send(latents.pieces, arrays, device, stream)
    return Staged(
        works=ordered,
        positions=positions,
        bounds=bounds,
        draws_with=draws_with,
        latents=staged_latents,
        values=values,
        conditionings=conditionings,
        shares_noise=shares_noise,
        noise_block=noise_block,
        # Rows of references are in the table too: its length alone says nothing.
        shares_latents=arrays["latents"].tolist() != list(range(latents.rows)),
        all_noisy=all_noisy,
        has_references=has_references,
        has_control=any(control.tolist()),
        scales=scales,
        control_coefficients=control,
        ready=ready,
    )


def _joined(parts: Sequence[npt.NDArray[T]]) -> npt.NDArray[T]:
    """One after the other. Most microbatches of a quiet server hold one work of one branch."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@lru_cache(maxsize=64)
def _tables(schedule: Schedule) -> tuple[Float32Array, Float32Array]:
    """alpha and sigma of every timestep, as the device has them."""
    return schedule.alpha.astype(_FLOATS), schedule.sigma.astype(_FLOATS)


def _noise_tables(
    works: Sequence[Work], sizes: Sequence[int], renders: Int64Array, indices: Int64Array
) -> dict[str, npt.NDArray[Any]]:
    """Distinct (seed, render, noise index): an antithetic pair, for one, shares its eps."""
    if len(works) == len(renders):
        # A draw each, and seeds that differ but by chance: two of one eps are made twice.
        return {
            "noise_seeds": np.array([(work.seed & 0xFFFFFFFF, work.seed >> 32) for work in works]),
            "noise_renders": renders,
            "noise_indices": indices,
        }
    seeds = chain.from_iterable(repeat(w.seed, n) for w, n in zip(works, sizes, strict=True))
    slots: dict[tuple[int, int, int], int] = {}
    of_draw = [
        slots.setdefault(key, len(slots))
        for key in zip(seeds, renders.tolist(), indices.tolist(), strict=True)
    ]
    return {
        "noise": np.array(of_draw),
        "noise_seeds": np.array([(seed & 0xFFFFFFFF, seed >> 32) for seed, _, _ in slots]),
        "noise_renders": np.array([render for _, render, _ in slots]),
        "noise_indices": np.array([index for _, _, index in slots]),
    }


def _block(of_draw: Sequence[int]) -> int:
    block = of_draw.count(0)
    whole = len(of_draw) % block == 0
    return block if whole and all(slot == i // block for i, slot in enumerate(of_draw)) else 0


class _LatentTable:
    """The renders in use, each work's own: ``pieces`` to be joined, of ``rows`` together, and the
    draws' indices."""

    def __init__(self, works: Sequence[Work], renders_of: Sequence[Int64Array]) -> None:
        self.pieces: list[Float32Array] = []
        self.rows = 0
        of_draw: list[Int64Array] = []
        references: list[tuple[Int64Array, Int64Array]] = []
        start = 0
        for work, renders in zip(works, renders_of, strict=True):
            used, inverse = renders, _FIRST
            if len(work.latents) == 1:
                used, inverse = _FIRST, np.zeros_like(renders)
            elif len(renders) > 1:
                used, inverse = np.unique(renders, return_inverse=True)
            of_draw.append(self._add(work.latents, used) + inverse)
            start += len(inverse)
            if work.reference_latents is not None:
                draws = np.arange(start - len(inverse), start)
                references.append((draws, self._add(work.reference_latents, used) + inverse))
        self.arrays = {"latents": np.concatenate(of_draw)}
        if references:
            self.arrays["reference_draws"] = np.concatenate([draws for draws, _ in references])
            self.arrays["reference_latents"] = np.concatenate([rows for _, rows in references])

    def _add(self, latents: Float32Array, used: Int64Array) -> int:
        """Index of the first of the used renders."""
        self.pieces.append(latents if len(used) == len(latents) else latents[used])
        self.rows += len(used)
        return self.rows - len(used)


def _row_sources(
    works: Sequence[Work], bounds: Sequence[int], draws_with: Sequence[int]
) -> Int64Array:
    at_reference = bounds[-1]  # index of the next work's first z_t at its reference
    references: dict[int, int] = {}
    for i, work in enumerate(works):
        if work.reference_latents is not None:
            references[i] = at_reference
            at_reference += len(work.renders)
    sources: list[Int64Array] = []
    for j in range(len(draws_with)):
        for i, work in enumerate(works):
            if len(work.branches) > j:
                uses = work.branches[j].use_reference and i in references
                start = references[i] if uses else bounds[i]
                sources.append(np.arange(start, start + len(work.renders)))
    return np.concatenate(sources)


def _conditioning_table(
    works: Sequence[Work], renders_of: Sequence[Int64Array], branches: int
) -> tuple[list[Conditioning], Int64Array]:
    """Distinct conditionings by handle, and each row's."""
    slots: dict[str, int] = {}
    distinct: list[Conditioning] = []
    of_row: list[int] = []
    for j in range(branches):
        for work, renders in zip(works, renders_of, strict=True):
            if len(work.branches) <= j:
                continue
            by_render: list[int] = []
            for conditioning in work.branches[j].conditionings:
                slot = slots.setdefault(conditioning.handle, len(distinct))
                if slot == len(distinct):
                    distinct.append(conditioning)
                by_render.append(slot)
            if len(by_render) == 1:
                of_row += by_render * len(renders)
            else:
                of_row += [by_render[render] for render in renders.tolist()]
    return distinct, np.array(of_row)


def _send(
    pieces: Sequence[Float32Array],
    arrays: Mapping[str, npt.NDArray[Any]],
    device: torch.device,
    stream: torch.cuda.Stream | None,
) -> tuple[torch.Tensor, Values, torch.cuda.Event | None]:
    if device.type == "cpu":
        return torch.from_numpy(np.concatenate(pieces)), _OnHost(arrays), None
    # From pinned memory a copy does not hold up the host.
    pinned = device.type == "cuda"
    size = sum(map(len, pieces))
    # None changes nothing. A stream brings its device, which pinned memory then belongs to.
    with torch.cuda.stream(stream):
        rows = torch.empty(size, *pieces[0].shape[1:], dtype=torch.float32, pin_memory=pinned)
        np.concatenate(pieces, out=rows.numpy())
        packed = pack(arrays, pinned)
        latents = rows.to(device, non_blocking=True)
        sent = packed.to(device, non_blocking=True)
        ready = None
        if stream is not None:
            ready = torch.cuda.Event()
            ready.record(stream)
    return latents, unpack(sent, arrays), ready


class _OnHost:
    """Tensors of the arrays' memory, made when they are asked for: some never are."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = arrays
        self._tensors: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._tensors[name] = torch.from_numpy(self._arrays[name])
        return tensor


def pack(arrays: Mapping[str, npt.NDArray[Any]], pinned: bool) -> torch.Tensor:
    """Arrays of 4 and 8 bytes an element as int64 words, each array from a whole word on."""
    packed = torch.empty(sum(map(_words, arrays.values())), dtype=torch.int64, pin_memory=pinned)
    raw, start = packed.numpy().view(np.uint8), 0
    for array in arrays.values():
        raw[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        start += 8 * _words(array)
    return packed


def unpack(words: torch.Tensor, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Views of the words, in the arrays' names, types and shapes."""
    values: dict[str, torch.Tensor] = {}
    start = 0
    for name, array in arrays.items():
        stop = start + _words(array)
        flat = words[start:stop].view(torch.from_numpy(array[:0]).dtype)[: array.size]
        values[name] = flat.reshape(array.shape)
        start = stop
    return values


def _words(array: npt.NDArray[Any]) -> int:
    return -(-array.nbytes // 8)
