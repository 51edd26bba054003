"""The noise law: Philox4x32-10 against its published known answers, and the normal law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from carv.noise import draw_noise, philox4x32

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = words(key)
    assert philox4x32([words(counter)], low | high << 32).tolist() == [words(expected)]


def test_philox_is_the_same_alone_and_in_a_batch() -> None:
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS], dtype=np.uint64)
    together = philox4x32(counters.reshape(3, 1, 4), 77)
    assert together.shape == (3, 1, 4)
    for row, counter in zip(together[:, 0], counters, strict=True):
        np.testing.assert_array_equal(row, philox4x32(counter, 77))


def test_noise_is_box_muller_of_the_philox_words() -> None:
    """The law spelled out in float64, for a seed, render and index that use all their bits."""
    seed, render, index, size = 2**63 + 12345, 7, 2**32 - 1, 10
    expected: list[float] = []
    for block in range(3):
        w = philox4x32([block, index, render, 0], seed).astype(object)
        for first, second in ((w[0], w[1]), (w[2], w[3])):
            radius = math.sqrt(-2.0 * math.log(((first >> 8) + 1) * 2.0**-24))
            angle = 2.0 * math.pi * (second >> 8) * 2.0**-24
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
    # float32 Box-Muller: the angle is rounded to 2^-22, the radius is at most 5.8.
    np.testing.assert_allclose(draw_noise(seed, render, index, [size]), expected[:size], atol=2e-6)


def test_noise_fills_the_event_row_major_and_is_a_prefix_of_longer_noise() -> None:
    flat = draw_noise(3, 1, 2, [30])
    np.testing.assert_array_equal(draw_noise(3, 1, 2, [2, 3, 5]), flat.reshape(2, 3, 5))
    # Not equal bit for bit: vectorised log and cos may round by array position.
    np.testing.assert_allclose(draw_noise(3, 1, 2, [7]), flat[:7], atol=2e-6)
    assert draw_noise(3, 1, 2, []).shape == ()


def test_noise_is_standard_normal() -> None:
    """200,000 values on a fixed seed: first four moments within 4 standard errors (two-sided
    false alarm 6e-5 each, had the seed not been fixed), Kolmogorov-Smirnov above 1e-3."""
    n = 200_000
    sample = draw_noise(20260521, 0, 0, [n]).astype(np.float64)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(sample**power) - mean) < 4 * math.sqrt(variance / n), power
    assert stats.kstest(sample, "norm").pvalue > 1e-3


@pytest.mark.parametrize("other", [(4, 0, 0), (3, 1, 0), (3, 0, 1)])
def test_seed_render_and_index_give_uncorrelated_noise(other: tuple[int, int, int]) -> None:
    n = 50_000
    a, b = draw_noise(3, 0, 0, [n]), draw_noise(*other, [n])
    # The correlation of independent samples has standard error 1/sqrt(n).
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(n)


def test_noise_tails_are_finite() -> None:
    """The radius takes log of at least 2^-24, so nothing exceeds sqrt(-2 log 2^-24) = 5.77."""
    sample = draw_noise(0, 0, 0, [1 << 20])
    assert np.abs(sample).max() <= math.sqrt(48 * math.log(2)) * (1 + 1e-6)
    assert sample.dtype == np.float32
