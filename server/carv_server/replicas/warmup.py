"""First forwards, before anyone waits for them: kernels are chosen, networks compiled, graphs
captured and memory taken."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from carv_server.replicas.forward import Forward
from carv_server.replicas.probe import probe_conditionings, probe_work

__all__ = ["warm_up"]

_log = logging.getLogger(__name__)


def warm_up(forward: Forward, sizes: Sequence[int]) -> None:
    """One forward of each size, the largest first, so that memory is taken once.

    Raises:
        RuntimeError: the teacher's answer to a fixed probe is not finite.
    """
    (conditioning, *_) = probe_conditionings(forward.teacher)
    for size in sorted(sizes, reverse=True):
        (result,) = forward.evaluate([probe_work(forward.teacher, [conditioning], size)])
        if result.failure is not None:
            raise RuntimeError(
                f"the teacher gives non-finite noise at timestep {result.failure.timestep} in a "
                f"forward of {size} rows"
            )
    _log.info("warmed up: forwards of %s rows", ", ".join(map(str, sorted(sizes))))
