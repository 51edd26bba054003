"""Which number format a device is good at, and what that costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from carv_server.host import undisturbed_seconds
from carv_server.replicas.forward import Forward
from carv_server.replicas.probe import probe_conditionings, probe_work
from carv_server.teachers.protocol import Teacher

__all__ = ["is_faster", "probe_gradient", "reduced_dtype", "relative_error"]

_PROBE_DRAWS = 16
# The format is part of a teacher's digest, and so of its handles: on a CPU, where it is measured,
# the gain has to be beyond what measurements vary by.
_WINS_BY = 2.0
_TURNS = 3


def reduced_dtype(device: torch.device) -> torch.dtype | None:
    """What a device may be good at: bfloat16 on CUDA devices of capability 8 and above, float16 on
    7, bfloat16 on a CPU that has instructions for it; else None. A CPU is to be measured."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # pyright: ignore[reportPrivateUsage]
        return torch.bfloat16
    return None


def is_faster(
    reduced: Teacher, exact: Teacher, clock: Callable[[], float] = undisturbed_seconds
) -> bool:
    """Whether the reduced teacher's forward of 16 rows takes less than half the time: the best
    of three, taken in turns."""
    forwards = [Forward(teacher) for teacher in (reduced, exact)]
    works = [
        probe_work(teacher, probe_conditionings(teacher)[:1], _PROBE_DRAWS)
        for teacher in (reduced, exact)
    ]
    best = [float("inf"), float("inf")]
    for turn in range(1 + _TURNS):  # the first warms up
        for i, (forward, work) in enumerate(zip(forwards, works, strict=True)):
            before = clock()
            forward.evaluate([work])
            if turn > 0:
                best[i] = min(best[i], clock() - before)
    return best[0] * _WINS_BY < best[1]


def probe_gradient(teacher: Teacher) -> torch.Tensor:
    """Gradient of a fixed request of 16 draws over all noise levels, guided where the teacher can
    be; float64 [D] on the CPU, NaN where the teacher's answer is not finite."""
    work = probe_work(teacher, probe_conditionings(teacher), _PROBE_DRAWS)
    (result,) = Forward(teacher).evaluate([work])
    if result.reduction is None:
        return torch.full((work.latents.size,), float("nan"), dtype=torch.float64)
    (moments,) = result.reduction.moments.values()
    return moments.mean


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float(np.linalg.norm((found - expected).numpy()) / np.linalg.norm(expected.numpy()))
