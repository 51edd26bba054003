"""A teacher with a device's timing and no device: each forward sleeps a fixed time for the launch
and one for each row. Scheduling is measured on it apart from the speed of this machine.

Its data law is N(0, I), so that eps_hat(z, t) = sigma z under a variance-preserving schedule:
exact, and cheap next to the sleep. With both times 0 what is left of a forward is making the
noise, z_t and the sums. Without arithmetic even that is left out: gradients are zeros, and what a
request then costs is the service alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.schedule import discrete_schedule
from carv_server.teachers.folder import read_json
from carv_server.teachers.protocol import (
    ConditioningSpec,
    Source,
    SourceError,
    TeacherDescription,
    Tensors,
    TensorSpec,
    Unconditional,
)

__all__ = ["SIMULATED_FILE", "DeviceTiming", "SimulatedTeacher", "load_simulated"]

SIMULATED_FILE = "simulated.json"
_TIMESTEPS = 1000


@dataclass(frozen=True)
class DeviceTiming:
    """Seconds of one forward: ``launch_seconds + rows * row_seconds``."""

    launch_seconds: float
    row_seconds: float

    def seconds(self, rows: int) -> float:
        return self.launch_seconds + rows * self.row_seconds


class SimulatedTeacher:
    """The standard normal law behind a timed device. Unconditional only.

    Args:
        arithmetic: False answers zeros, see ``TeacherDescription``.
    """

    def __init__(
        self, event_shape: Sequence[int], timing: DeviceTiming, *, arithmetic: bool = True
    ) -> None:
        self.timing = timing
        # Cosine schedule, Nichol and Dhariwal 2021, Eq. 17.
        t = (np.arange(1, _TIMESTEPS + 1) / _TIMESTEPS + 0.008) / 1.008
        cumulative = np.clip(np.cos(t * math.pi / 2) ** 2, 1e-5, None)
        schedule = discrete_schedule(cumulative / math.cos(0.008 / 1.008 * math.pi / 2) ** 2)
        self._sigma = torch.as_tensor(schedule.sigma, dtype=torch.float32)
        stated: dict[str, Any] = {"event_shape": list(event_shape), **asdict(timing)}
        if not arithmetic:
            stated["arithmetic"] = False
        law = "standard normal" if arithmetic else "zeros, no arithmetic"
        digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
        self._description = TeacherDescription(
            digest=digest,
            family="simulated",
            event_shape=tuple(event_shape),
            schedule=schedule,
            prediction_type=PredictionType.EPSILON,
            conditioning=ConditioningSpec(
                accepts_prompts=False,
                classes=0,
                has_unconditional=True,
                tensors=(TensorSpec("none", torch.int64, ()),),
            ),
            description=f"{law}; {1e3 * timing.launch_seconds:g} ms a launch and "
            f"{1e3 * timing.row_seconds:g} ms a row",
            arithmetic=arithmetic,
        )

    @property
    def description(self) -> TeacherDescription:
        return self._description

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, source: Source) -> Sequence[Tensors]:
        if not isinstance(source, Unconditional):
            raise SourceError("source", "this teacher is unconditional")
        return [{"none": torch.tensor(0)}]

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        end = time.perf_counter() + self.timing.seconds(len(z_t))
        noise = torch.zeros(()).expand(z_t.shape)
        if self._description.arithmetic:
            noise = self._sigma[timesteps].reshape(-1, *(1,) * (z_t.ndim - 1)) * z_t
        left = end - time.perf_counter()
        if left > 0:  # a sleep of nothing still gives the processor away
            time.sleep(left)
        return noise


def load_simulated(folder: Path) -> SimulatedTeacher:
    """Read ``simulated.json``: event_shape, launch_seconds and row_seconds; and ``arithmetic``,
    true where it is not stated.

    Raises:
        TeacherFolderError: the file is no JSON object.
        ValueError: it is incomplete, or a value is out of range.
    """
    content = read_json(folder / SIMULATED_FILE)
    missing = [k for k in ("event_shape", "launch_seconds", "row_seconds") if k not in content]
    if missing:
        raise ValueError(f"it does not state {', '.join(missing)}")
    shape: list[Any] = list(content["event_shape"])
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"event_shape {shape} is not a list of whole numbers above 0")
    timing = DeviceTiming(float(content["launch_seconds"]), float(content["row_seconds"]))
    if not all(0 <= seconds < math.inf for seconds in asdict(timing).values()):
        raise ValueError("launch_seconds and row_seconds must be 0 or more")
    arithmetic = content.get("arithmetic", True)
    if not isinstance(arithmetic, bool):
        raise ValueError(f"arithmetic {arithmetic!r} is neither true nor false")
    return SimulatedTeacher(shape, timing, arithmetic=arithmetic)
