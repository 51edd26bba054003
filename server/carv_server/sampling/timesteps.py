"""Timestep samplers: where the points u in [0, 1) fall before the inverse CDF.

Every sampler's points are marginally uniform once render and draw are averaged over, so the
mean over draws stays unbiased for any proposal.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from carv.noise import DOMAIN_JITTER, DOMAIN_PERMUTATION, philox4x32
from carv_server.sampling.philox import one_philox4x32

__all__ = ["TimestepSampler", "place_points"]

Float64Array = npt.NDArray[np.float64]

# So many counters cost less one by one than numpy's calls do.
_FEW = 8
_BELOW_ONE = 1.0 - 2.0**-53


class TimestepSampler(Enum):
    IID = "iid"
    STRATIFIED = "stratified"
    GLOBAL = "global"
    NESTED = "nested"


def place_points(
    sampler: TimestepSampler, renders: int, draws: int, seed: int, stream: int = 0
) -> Float64Array:
    """Points u_rk, float64 [R, K] in [0, 1); within a render they rise with k, but for ``iid``.

    - ``iid``: independent uniforms.
    - ``stratified``: (k + xi_rk) / K (arXiv 2605.21489, Eq. 15 and 17). K = 1 is ``iid``.
    - ``global``: strata of all R K points, dealt to renders by a random permutation (Eq. 14).
    - ``nested``: (k + (pi_k(r) + xi_rk) / R) / K with a fresh permutation pi_k for each
      stratum: stratified within every render and over the request. R = 1 is ``stratified``,
      K = 1 is ``global``.

    A pure function of its arguments: xi and the permutations come from Philox under the
    request's seed, so they do not depend on a library's version. Streams of one seed are
    independent of each other.
    """
    xi = _uniforms(seed, DOMAIN_JITTER, renders, draws, stream)
    if renders * draws == 1:
        return xi  # one stratum, whatever the sampler
    match sampler:
        case TimestepSampler.IID:
            points = xi
        case TimestepSampler.STRATIFIED:
            points = (np.arange(draws) + xi) / draws
        case TimestepSampler.GLOBAL:
            stratum = _permuted(seed, renders, draws, stream, axis=None)
            points = np.sort((stratum + xi) / (renders * draws), axis=1)
        case TimestepSampler.NESTED:
            inner = _permuted(seed, renders, draws, stream, axis=0)
            points = (np.arange(draws) + (inner + xi) / renders) / draws
    # (k + xi) / K can round up to 1 at the top stratum.
    return np.minimum(points, _BELOW_ONE)


def _permuted(
    seed: int, renders: int, draws: int, stream: int, axis: int | None
) -> npt.NDArray[np.int64]:
    """Random permutations along the renders (0), or of all points (None), int64 [R, K]."""
    if (renders if axis == 0 else renders * draws) == 1:
        return np.zeros((renders, draws), dtype=np.int64)  # there is only one
    keys = _uniforms(seed, DOMAIN_PERMUTATION, renders, draws, stream)
    return np.argsort(keys, axis=axis, kind="stable").reshape(renders, draws)


def _uniforms(seed: int, domain: int, renders: int, draws: int, stream: int) -> Float64Array:
    """53-bit uniforms, float64 [R, K], from counters (stream, k, r, domain)."""
    if renders * draws <= _FEW:
        return np.array(
            [
                [_uniform(*one_philox4x32(stream, k, r, domain, seed)[:2]) for k in range(draws)]
                for r in range(renders)
            ]
        )
    counters = np.zeros((renders, draws, 4), dtype=np.uint64)
    counters[..., 0] = stream
    counters[..., 1] = np.arange(draws)
    counters[..., 2] = np.arange(renders)[:, None]
    counters[..., 3] = domain
    words = philox4x32(counters, seed).astype(np.float64)
    high, low = np.floor(words[..., 0] / 32.0), np.floor(words[..., 1] / 64.0)
    return (high * 67108864.0 + low) / 9007199254740992.0


def _uniform(first: int, second: int) -> float:
    """The same from the first two words of one counter, by exact integers."""
    return ((first >> 5) * 67108864 + (second >> 6)) / 9007199254740992.0
