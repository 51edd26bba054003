"""Philox4x32-10 (Salmon et al., SC 2011) as a device likes it best: numpy's wrapping uint64 on a
CPU, int64 tensors elsewhere, Python's integers for a counter or two. The law and the counter layout
are those of ``carv.noise``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["WordBlock", "noise_words", "one_philox4x32", "philox4x32"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
UInt64Array = npt.NDArray[np.uint64]


def philox4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Philox4x32-10 over int64 tensors that hold 32-bit words; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = (high1 ^ c1 ^ k0) & _LOW, low1, (high0 ^ c3 ^ k1) & _LOW, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def one_philox4x32(c0: int, c1: int, c2: int, c3: int, seed: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of one counter: 10 us, where numpy's calls take over 100 for any few."""
    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High word, to be masked, and low word of the 64-bit product.

    The product would overflow int64, which torch does not define. Both multipliers are above
    2^31, so that ``word * (multiplier - 2^32)`` fits, and lacks ``word`` in its high half.
    """
    product = word * (multiplier - (1 << 32))
    return (product >> 32) + word, product & _LOW


@dataclass(frozen=True)
class WordBlock:
    """Output words of the counters of some draws (rows) and blocks of their events (columns).

    Attributes:
        even, odd: uint64 [2, rows, columns], below 2^32: words 0 and 2, and words 1 and 3; the
            receiver's to overwrite, until it asks for the next block.
    """

    rows: slice
    columns: slice
    even: UInt64Array
    odd: UInt64Array


def noise_words(
    indices: UInt64Array,
    renders: UInt64Array,
    keys: UInt64Array,
    blocks: int,
    domain: int,
    counters: int,
) -> Iterator[WordBlock]:
    """Philox4x32-10 of the counters (block, index, render, domain), by numpy, ``counters`` of
    them at a time: few enough for the processor's cache, many enough to hide numpy's calls.

    What depends on the draw alone, or on the block alone, in the first three rounds is computed
    once for each.

    Args:
        indices, renders: [n], below 2^32.
        keys: [n, 2], low and high word of each draw's seed.
        blocks: counters of each draw.
    """
    low, half = np.uint64(_LOW), np.uint64(32)
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    multipliers = np.array(_MULTIPLIERS, dtype=np.uint64).reshape(2, 1, 1)
    # [rounds, 2, n, 1]
    steps = np.arange(_ROUNDS, dtype=np.uint64)[:, None] * np.array(_WEYL, dtype=np.uint64)
    round_keys = (keys.T + steps[..., None])[..., None] & low

    # Round 1: words 0 and 1 of the next counter go by draw, 2 and 3 by block.
    by_block = m0 * np.arange(blocks, dtype=np.uint64)
    by_draw = m1 * renders[:, None]
    c0 = (by_draw >> half) ^ indices[:, None] ^ round_keys[0, 0]
    c1, c2, c3 = by_draw & low, (by_block >> half) ^ np.uint64(domain), by_block & low
    key2 = round_keys[0, 1]
    # Round 2: words 1 and 3 of the next counter still go by draw, in part.
    by_draw = m0 * c0
    c1 ^= round_keys[1, 0]
    mixed, c3_by_draw = (by_draw >> half) ^ round_keys[1, 1], by_draw & low

    width = max(1, min(blocks, counters))
    height = min(len(keys), max(1, counters // width))
    # Words 0 and 2 share an array, [2, rows, columns], and so do 1 and 3.
    buffers = np.empty((3, 2, height, width), dtype=np.uint64)
    for top in range(0, len(keys), height):
        rows = slice(top, top + height)
        later_keys = np.ascontiguousarray(round_keys[2:, :, rows])
        for left in range(0, blocks, width):
            columns = slice(left, min(left + width, blocks))
            even, odd, product = buffers[
                :, :, : len(later_keys[0, 0]), : columns.stop - columns.start
            ]
            np.bitwise_xor(c2[columns], key2[rows], out=even[1])
            np.multiply(even[1], m1, out=odd[0])
            np.right_shift(odd[0], half, out=even[0])
            even[0] ^= c1[rows]
            np.bitwise_xor(mixed[rows], c3[columns], out=even[1])
            odd[0] &= low
            odd[1] = c3_by_draw[rows]
            for key in later_keys:
                np.multiply(even, multipliers, out=product)
                swapped = product[::-1]
                np.right_shift(swapped, half, out=even)
                even ^= odd
                even ^= key
                product &= low
                # The odd words are spent once their round has mixed them in.
                odd, product = swapped, odd
            yield WordBlock(rows, columns, even, odd)
