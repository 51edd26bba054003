"""How many replicas a teacher should have: a pure decision on what was seen.

Up when the queue holds more work than the replicas there are do in ``up_seconds``; down when
fewer would do. Both must hold for a while (hysteresis), and each change is followed by a rest, for
a replica takes long to load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["Load", "ScalePolicy", "ScaleState", "decide"]


@dataclass(frozen=True)
class ScalePolicy:
    """Bounds and pace.

    Attributes:
        min_replicas, max_replicas: equal ones mean no scaling.
        up_seconds: seconds of work waiting per replica that ask for more.
        up_after_seconds: for how long.
        down_seconds: seconds of work waiting per replica under which fewer may do.
        down_share: and the fewer would be busy for no more than this share of their time.
        down_after_seconds: for how long.
        cool_down_seconds: from a change to the next.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    up_seconds: float = 2.0
    up_after_seconds: float = 3.0
    down_seconds: float = 0.2
    down_share: float = 0.6
    down_after_seconds: float = 60.0
    cool_down_seconds: float = 15.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"{self.min_replicas} to {self.max_replicas} replicas: the least must be 1 or "
                "more and at most the most"
            )


@dataclass(frozen=True)
class Load:
    """What is seen of a teacher's queue and replicas.

    Attributes:
        waiting_seconds: work in the queue, in seconds of one replica.
        busy: replicas that are computing, on average since the last look.
        warm: replicas that take work.
    """

    waiting_seconds: float
    busy: float
    warm: int


@dataclass(frozen=True)
class ScaleState:
    """What a decision needs of the ones before.

    Attributes:
        target: replicas wanted.
        changed_at: clock reading of the last change.
        high_since, low_since: since when the load has asked for more or for less; None: it
            does not.
    """

    target: int
    changed_at: float = -math.inf
    high_since: float | None = None
    low_since: float | None = None


def decide(policy: ScalePolicy, state: ScaleState, load: Load, now: float) -> ScaleState:
    """The next state; ``target`` is within the policy's bounds.

    Up goes at once to what would bring the queue to ``up_seconds`` a replica; down goes by one.
    Nothing changes while replicas start or are lost: what they will do is not seen yet.
    """
    settled = load.warm >= state.target
    per_replica = load.waiting_seconds / max(load.warm, 1)
    high = per_replica > policy.up_seconds
    spare = load.busy <= policy.down_share * (state.target - 1)
    low = not high and per_replica < policy.down_seconds and spare
    state = replace(
        state,
        high_since=(now if state.high_since is None else state.high_since) if high else None,
        low_since=(now if state.low_since is None else state.low_since) if low else None,
    )
    if not settled or now - state.changed_at < policy.cool_down_seconds:
        return state
    target = state.target
    if state.high_since is not None and now - state.high_since >= policy.up_after_seconds:
        target = max(target + 1, math.ceil(load.waiting_seconds / policy.up_seconds))
    elif state.low_since is not None and now - state.low_since >= policy.down_after_seconds:
        target -= 1
    target = min(max(target, policy.min_replicas), policy.max_replicas)
    return state if target == state.target else ScaleState(target, changed_at=now)
