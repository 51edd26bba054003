"""Draws until a target standard error, exactly unbiased: two streams that stop each other.

The draws of a render come in two streams A and B that share no randomness, each in blocks: one
stratified plan each, their sizes given by a fixed row of checkpoints n_1 < n_2 < ... Stream A
ends where the blocks of B say, and B where those of A say: at a checkpoint, or with one last
block of a size that the other stream's blocks *up to that checkpoint* determine. Only blocks of
the fixed row are ever looked at; a stream whose end is known goes on along the row, unused, while
the other's end is not.

Unbiased. Let m_A(n) be the mean of A's first n draws; E m_A(n) = g for every n, as for any plan of
fixed size. The blocks of the fixed row are functions of their stream's randomness alone, and so
N_A is a function of B's randomness alone. Hence E m_A(N_A) = sum_n P(N_A = n) E m_A(n) = g: no
selection, no term in 1/n. Likewise for B, and (m_A + m_B) / 2 has mean g exactly. Weights by size
would depend on both streams, and unequal sizes cost the equal weights a term of second order only.
Each stream's own variance estimate is not selected by its end either; that by twins, which rests
on both streams, is. ``sampling.streams.combine`` says what is made of that.

Not so with the obvious rules. A stream that ends on its own draws ends early where these happen to
look good. Cross-stopping without a fixed row leaks: A's first draws would set the size of
B's next block, and that block A's end.

The price: ends are planned from a stream's first half or so, never checked against all draws; the
standard error reached scatters around the target by some per cent, and is stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from carv_server.sampling.streams import COLLAPSED_OVERHEAD, OVERHEAD, Sums

__all__ = ["Ending", "StoppingRule"]

_FIRST_DRAWS = 16
_GROWTH = 2.0
_LEAST_BLOCK = 4
# A need so near the next checkpoint ends there: both streams then mostly end alike, and no block
# is made for the other's sake alone.
_SNAP_DOWN, _SNAP_UP = 1.1, 0.85
_LARGEST_BLOCK = 64
_LARGEST_PENULTIMATE = 2.0 / 3.0  # of the budget
_MOST_BLOCKS = 512


@dataclass(frozen=True)
class Ending:
    """Where a stream ends: at checkpoint number ``checkpoint`` (from 1), and ``extra`` draws.

    Attributes:
        capped: the draw budget ended it, not the target.
    """

    checkpoint: int
    extra: int
    capped: bool


@dataclass(frozen=True)
class StoppingRule:
    """When a stream of one render ends.

    Args:
        target: relative standard error of the mean of both streams; 0: none.
        most: draws of one stream, at least 1.
        stratified: whether a block costs draws of its own, as under strata it does.
    """

    target: float
    most: int
    stratified: bool = True

    def checkpoint(self, number: int) -> int:
        """n_number, draws of a stream; n_0 = 0.

        None is between 2/3 of ``most`` and ``most``. A stream whose end is known walks for the
        other's sake at most to the checkpoint n before ``most``; its last block takes less than
        a stage, hence n / 2, or fits below ``most`` by itself: both together fit the budget.
        """
        if number == 0:
            return 0
        draws = round(_FIRST_DRAWS * _GROWTH ** min(number - 1, 64))
        return draws if draws <= _LARGEST_PENULTIMATE * self.most else self.most

    def blocks(self, draws: int) -> list[int]:
        """Cut into blocks of a bounded size, so that a mean moves on while a long stage runs and
        little is lost where time runs out; even ones but for the last."""
        count = max(1, math.ceil(draws / max(_LARGEST_BLOCK, self.most // _MOST_BLOCKS)))
        size = 2 * math.ceil(draws / (2 * count))
        return [min(size, draws - start) for start in range(0, draws, size)]

    def ending(self, other: Sums, number: int) -> Ending | None:
        """The end of a stream, from the other one's blocks up to a checkpoint; None: look again
        at the next one.

        Args:
            other: the blocks of the other stream that make up its first n_number draws. Where
                n_number is ``most`` they may be those up to the checkpoint before: the end is there
                anyway, and only ``capped`` is asked for.
        """
        here, following = self.checkpoint(number), self.checkpoint(number + 1)
        if self._reached(other, number):
            return Ending(number, 0, capped=False)
        if here == self.most:
            return Ending(number, 0, capped=True)
        needed = self._needed(other)
        if needed > _SNAP_DOWN * following:
            return None
        extra = max(_LEAST_BLOCK, 2 * math.ceil((needed - here) / 2))
        if needed >= _SNAP_UP * following or here + extra >= following:
            # At the budget, whether the target is met is for the last look to say.
            return None if following == self.most else Ending(number + 1, 0, capped=False)
        return Ending(number, extra, capped=False)

    def _reached(self, other: Sums, number: int) -> bool:
        if not self.target > 0:
            return False
        here = self.checkpoint(number)
        per_draw, signal = self._moments(other)
        if per_draw == 0.0 and signal == 0.0:
            # All draws are zero: those of two checkpoints are believed.
            return number >= 2
        variance = per_draw * (here + self._overhead * other.blocks) / here**2
        return signal > 0 and variance / 2.0 <= _SNAP_DOWN * self.target**2 * signal

    def _needed(self, other: Sums) -> float:
        """The N that solves a (N + b (blocks + 1)) / N^2 / 2 = target^2 ||g||^2."""
        per_draw, signal = self._moments(other)
        allowed = 2.0 * self.target**2 * signal
        if not (allowed > 0 and per_draw < math.inf):
            return math.inf
        half = per_draw / (2.0 * allowed)
        # In this order, since half may be anything up to infinity.
        return half + math.sqrt(half) * math.sqrt(half + 2.0 * self._overhead * (other.blocks + 1))

    def _moments(self, blocks: Sums) -> tuple[float, float]:
        """a, and ||g||^2 without the noise in it; (inf, -inf) where no block has a variance."""
        per_draw = blocks.own.per_draw(COLLAPSED_OVERHEAD if self.stratified else 0.0)
        if math.isnan(per_draw):
            return math.inf, -math.inf
        mean, draws = blocks.mean, blocks.draws
        noise = per_draw * (draws + self._overhead * blocks.blocks) / draws**2
        return per_draw, float(mean @ mean) - noise

    @property
    def _overhead(self) -> float:
        return OVERHEAD if self.stratified else 0.0
