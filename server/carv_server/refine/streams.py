"""One render: drives two streams of blocks by the rule of ``sampling.refinement``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from enum import Enum
from typing import Any

from carv_server.estimate import together
from carv_server.sampling.refinement import Ending, StoppingRule
from carv_server.sampling.streams import Block, Combined, Sums, combine

__all__ = ["EvaluateBlock", "Refinement", "StopReason"]

_LAST_BLOCKS = 1024  # numbers of the blocks after the last checkpoint, apart from the row's


class StopReason(Enum):
    TARGET = "target"
    DRAW_BUDGET = "draw_budget"
    TIME_BUDGET = "time_budget"


EvaluateBlock = Callable[[int, Sequence[int], int], Coroutine[Any, Any, Sequence[Block]]]
"""(number, streams, draws) to the block of that number of each of the streams."""


class Refinement:
    """One render on its way to its target: drives two streams by a rule.

    Args:
        evaluate: makes a block; a pure function of its arguments but for time. Streams, and
            numbers of one stream, must share no randomness.
        most: draws of the render. One draw is stream 0 alone.
        moved: called whenever ``combined`` has changed.
    """

    def __init__(
        self,
        evaluate: EvaluateBlock,
        *,
        target: float,
        most: int,
        stratified: bool,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._evaluate = evaluate
        self._rule = StoppingRule(target, max(1, most // 2), stratified)
        self._moved = moved
        self._ends: list[Ending | None] = [None, None]
        if most == 1:
            self._ends = [Ending(1, 0, capped=True), Ending(0, 0, capped=True)]
        # By stream: what its mean rests on, and the row past its end, that decides alone.
        self._used = [Sums(), Sums()]
        self._beyond = [Sums(), Sums()]

    @property
    def started(self) -> bool:
        """Whether there is a mean at all."""
        return any(sums.blocks for sums in self._used)

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the streams end; None while that is open."""
        first, second = self._ends
        if first is None or second is None:
            return None
        capped = first.capped or second.capped
        return StopReason.DRAW_BUDGET if capped else StopReason.TARGET

    def used(self) -> tuple[Sums, Sums]:
        """What the mean of each stream rests on; does not change once read."""
        return self._used[0], self._used[1]

    async def run(self) -> Combined:
        """To the end of both streams."""
        stage, number = 0, 0
        while True:
            going = [s for s in (0, 1) if self._goes_on(s, stage)]
            if not going:
                break
            stage += 1
            sizes = self._rule.blocks(
                self._rule.checkpoint(stage) - self._rule.checkpoint(stage - 1)
            )
            places = [self._beyond if self._over(s, stage) else self._used for s in (0, 1)]
            await self._fill(places, going, number, sizes)
            number += len(sizes)
            rows = [used.merged(more) for used, more in zip(self._used, self._beyond, strict=True)]
            for s in (0, 1):
                if self._ends[s] is None:
                    self._ends[s] = self._rule.ending(rows[self._judge(s)], stage)
        await together(
            [
                self._fill([self._used] * 2, [s], _LAST_BLOCKS, self._rule.blocks(end.extra))
                for s, end in enumerate(self._ends)
                if end is not None and end.extra
            ]
        )
        return combine(*self.used())

    def _judge(self, stream: int) -> int:
        """The stream whose blocks say where a stream ends."""
        return 1 - stream

    def _over(self, stream: int, stage: int) -> bool:
        """Whether a stream is known to end before a stage."""
        end = self._ends[stream]
        return end is not None and end.checkpoint < stage

    def _goes_on(self, stream: int, stage: int) -> bool:
        """Whether the stage after one is needed: for the stream itself, or to end the other."""
        if not self._over(stream, stage + 1):
            return True
        # Whatever the last stage would say, the other ends with it.
        other_is_open = self._ends[1 - stream] is None
        return other_is_open and self._rule.checkpoint(stage + 1) < self._rule.most

    async def _fill(
        self, places: Sequence[list[Sums]], streams: Sequence[int], first: int, sizes: Sequence[int]
    ) -> None:
        """Blocks of the streams from number ``first`` on, added where ``places`` says for each."""

        async def one(position: int, draws: int) -> None:
            blocks = await self._evaluate(first + position, streams, draws)
            for stream, block in zip(streams, blocks, strict=True):
                places[stream][stream] = places[stream][stream].plus(block)
            self._moved()

        await together([one(position, draws) for position, draws in enumerate(sizes)])
