"""Blocks of draws of two independent streams, their sums, and the mean of both with its variance.

The streams' sizes may be chosen by each other's draws (``sampling.refinement``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["COLLAPSED_OVERHEAD", "OVERHEAD", "Block", "Combined", "Sums", "combine"]

Float64Array = npt.NDArray[np.float64]

# K W(K) = a (1 + b / K) falls towards a as strata shrink and pairs come closer: b as measured for
# adjacent antithetic strata, and as collapsed strata see it, which are conservative at small K.
# The number of draws rests on these, and the variance where blocks differ in size.
OVERHEAD, COLLAPSED_OVERHEAD = 1.4, 4.5


@dataclass(frozen=True)
class Block:
    """One plan of draws of one stream, evaluated.

    Attributes:
        mean: float64 [D].
        variance: estimate of tr Cov of ``mean`` from this stream alone; NaN where there is none.
        conservative: whether ``variance`` is on average above that, as under strata.
        twin_variance: the same from the differences to the other stream's block in each stratum,
            unbiased (two draws in a stratum: Cochran 1977, Section 5.12); NaN where the other
            stream has no such block.
    """

    draws: int
    mean: Float64Array
    variance: float
    conservative: bool = False
    twin_variance: float = math.nan


@dataclass(frozen=True)
class _Rate:
    """Of some blocks, what gives the a of W(n) = a (1 + overhead / n) / n.

    Attributes:
        squared: sum of n^2 W(n).
    """

    squared: float = 0.0
    draws: int = 0
    blocks: int = 0

    def __add__(self, other: _Rate) -> _Rate:
        return _Rate(
            self.squared + other.squared, self.draws + other.draws, self.blocks + other.blocks
        )

    def per_draw(self, overhead: float) -> float:
        """a; NaN without blocks."""
        return self.squared / (self.draws + overhead * self.blocks) if self.draws else math.nan


@dataclass(frozen=True)
class Sums:
    """Over blocks of one stream. Adding makes new ones: what has been read stays as it was.

    Attributes:
        total: float64 [D], sum of n mean; of shape () without blocks.
        own: over the blocks that have a variance of their own.
        twins, own_of_twins: variances by twins and own ones, over the blocks that have both; for
            ``twins`` alone also those with no own one.
        conservative: whether that of any block is.
    """

    draws: int = 0
    blocks: int = 0
    total: Float64Array = field(default_factory=lambda: np.zeros(()))
    own: _Rate = _Rate()
    twins: _Rate = _Rate()
    own_of_twins: _Rate = _Rate()
    conservative: bool = False

    @property
    def mean(self) -> Float64Array:
        """float64 [D]. Requires draws."""
        return self.total / self.draws

    def plus(self, block: Block) -> Sums:
        def rate(variance: float) -> _Rate:
            if math.isnan(variance):
                return _Rate()
            return _Rate(block.draws**2 * variance, block.draws, 1)

        own, twins = rate(block.variance), rate(block.twin_variance)
        return self.merged(
            Sums(
                block.draws,
                1,
                block.draws * block.mean,
                own,
                twins,
                own if twins.blocks else _Rate(),
                block.conservative,
            )
        )

    def merged(self, other: Sums) -> Sums:
        """Over the blocks of both."""
        if not (self.blocks and other.blocks):
            return other if other.blocks else self
        return Sums(
            self.draws + other.draws,
            self.blocks + other.blocks,
            self.total + other.total,
            self.own + other.own,
            self.twins + other.twins,
            self.own_of_twins + other.own_of_twins,
            self.conservative or other.conservative,
        )


@dataclass(frozen=True)
class Combined:
    """Both streams together.

    Attributes:
        mean: float64 [D].
        variance: estimate of tr Cov of ``mean``; NaN for a single draw.
        conservative: whether ``variance`` is on average above that.
    """

    draws: int
    mean: Float64Array
    variance: float
    conservative: bool

    @property
    def relative_standard_error(self) -> float:
        """sqrt(variance) / ||g||, the square of the norm less the noise in it; infinite where
        that is not above zero."""
        signal = float(self.mean @ self.mean) - self.variance  # NaN compares false
        return math.sqrt(self.variance / signal) if signal > 0 else math.inf


def combine(first: Sums, second: Sums) -> Combined:
    """(m_A + m_B) / 2 with its variance, or the one stream that has any blocks.

    Where blocks have twins, the variance of a stream is its own times what the twins' variance
    is of the own ones in the same blocks: the own one alone would be conservative, and the
    twins' alone too low, since both streams' ends are selected by them. In the factor the
    selection mostly cancels: a consistent estimate, not an exactly unbiased one.
    """
    streams = [sums for sums in (first, second) if sums.blocks]
    together = Sums()
    for sums in streams:
        together = together.merged(sums)
    by_twins = together.twins.per_draw(OVERHEAD)
    variance = sum(_variance(sums, together, by_twins) for sums in streams) / len(streams) ** 2
    conservative = together.conservative and math.isnan(by_twins)
    means = [sums.mean for sums in streams]
    if math.isnan(variance) and len(streams) == 2:
        # The streams are independent with one mean: unbiased, if rough.
        difference = means[0] - means[1]
        variance, conservative = float(difference @ difference) / 4.0, False
    mean = means[0] if len(means) == 1 else (means[0] + means[1]) / 2.0
    return Combined(together.draws, mean, variance, conservative)


def _variance(stream: Sums, both: Sums, by_twins: float) -> float:
    """Of a stream's mean. ``by_twins``: the a of both streams, NaN where no block has a twin."""
    if math.isnan(by_twins):
        # A block without a variance of its own counts by its size.
        missing = stream.draws - stream.own.draws
        rest = missing * both.own.per_draw(0.0) if missing else 0.0
        return (stream.own.squared + rest) / stream.draws**2
    own, average = (rate.per_draw(COLLAPSED_OVERHEAD) for rate in (stream.own, both.own_of_twins))
    share = own / average if average > 0 and not math.isnan(own) else 1.0
    return share * by_twins * (stream.draws + OVERHEAD * stream.blocks) / stream.draws**2
