"""Which callers are about to ask again: those that use to, shortly after each answer."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable

from carv_server.scheduling.hold import Expected

__all__ = ["ReturnForecast"]

_SMOOTHING = 0.25
# Three returns in a row make a caller reliable; three answers without one end it.
_RELIABLE = 0.5
# An answer that is followed by nothing for so long was the last of its burst.
_HORIZON_SECONDS = 0.1
# A return that is late by more than this is given up.
_LATE_DEVIATIONS = 4.0
_LATE_SECONDS = 0.002
# What is due already should be here any moment.
_SOON_SECONDS = 0.001
_MAX_CALLERS = 1024
_MAX_OPEN_ANSWERS = 64


class _Caller:
    __slots__ = ("answers", "deviation", "evaluations", "gap", "returns")

    def __init__(self) -> None:
        self.answers: deque[float] = deque(maxlen=_MAX_OPEN_ANSWERS)
        self.gap = _HORIZON_SECONDS
        self.deviation = 0.0
        self.returns = 0.0
        self.evaluations = 1.0

    @property
    def patience(self) -> float:
        if self.returns < _RELIABLE:
            return _HORIZON_SECONDS
        late = self.gap + _LATE_DEVIATIONS * self.deviation + _LATE_SECONDS
        return min(_HORIZON_SECONDS, late)

    def steady(self, most_deviation: float) -> bool:
        return self.returns >= _RELIABLE and self.deviation <= most_deviation

    def returned(self, gap: float) -> None:
        if self.returns == 0.0:
            self.gap, self.deviation = gap, gap / 2.0
        else:
            self.deviation += _SMOOTHING * (abs(gap - self.gap) - self.deviation)
            self.gap += _SMOOTHING * (gap - self.gap)
        self.returns += _SMOOTHING * (1.0 - self.returns)

    def missed(self) -> None:
        self.returns -= _SMOOTHING * self.returns


class ReturnForecast:
    """Learns for each caller how long after an answer its next request comes, and how surely.

    Of a caller with several requests in flight the oldest answer is taken for the one that a new
    request follows: the mean gap does not depend on which. The last 1024 callers are known.
    """

    def __init__(self) -> None:
        self._callers: OrderedDict[Hashable, _Caller] = OrderedDict()
        self._open: dict[Hashable, _Caller] = {}

    def answered(self, caller: Hashable, now: float) -> None:
        known = self._callers.get(caller)
        if known is None:
            known = self._callers[caller] = _Caller()
            if len(self._callers) > _MAX_CALLERS:
                gone, _ = self._callers.popitem(last=False)
                self._open.pop(gone, None)
        known.answers.append(now)
        self._open[caller] = known

    def arrived(self, caller: Hashable, evaluations: int, now: float) -> None:
        known = self._callers.get(caller)
        if known is None:
            return
        self._callers.move_to_end(caller)
        known.evaluations += _SMOOTHING * (evaluations - known.evaluations)
        self._give_up(known, now)
        if known.answers:
            known.returned(now - known.answers.popleft())
        if not known.answers:
            self._open.pop(caller, None)

    def expected(self, now: float, most_deviation: float) -> list[Expected]:
        """Requests that are due, in no order, of reliable callers whose gaps deviate from their
        mean by so many seconds at most, on average."""
        found: list[Expected] = []
        for caller, known in list(self._open.items()):
            self._give_up(known, now)
            if not known.answers:
                del self._open[caller]
            elif known.steady(most_deviation):
                due = known.gap + known.deviation - now
                found += [
                    Expected(max(_SOON_SECONDS, answer + due), round(known.evaluations))
                    for answer in known.answers
                ]
        return found

    def after_answers(self, callers: Iterable[Hashable], most_deviation: float) -> list[Expected]:
        """As ``expected``, for callers that would be answered now."""
        known = [self._callers.get(caller) for caller in callers]
        return [
            Expected(each.gap + each.deviation, round(each.evaluations))
            for each in known
            if each is not None and each.steady(most_deviation)
        ]

    def _give_up(self, known: _Caller, now: float) -> None:
        while known.answers and now - known.answers[0] > known.patience:
            known.answers.popleft()
            known.missed()
