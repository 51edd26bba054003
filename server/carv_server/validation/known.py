"""What the requests of a run have in common, checked once: a run asks thousands of times for one
gradient, each time at other latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from carv.v1 import teacher_service_pb2 as pb
from carv_server.request import DrawSpec, EstimateRequest
from carv_server.sampling.objective import ObjectiveTables
from carv_server.validation.recent import Recent

__all__ = ["Key", "Known", "KnownRequests", "key_of"]

_MOST = 64
_LARGEST_KEY_BYTES = 4096

Key = tuple[bytes, bytes, int, bool, bool]
"""All of a request but its latents, its seed and its teacher."""


@dataclass(frozen=True)
class Known:
    """What has been found sound.

    Attributes:
        renders: of the latents that it was found sound with.
        handles: for each branch.
    """

    renders: int
    handles: Sequence[Sequence[str]]
    objective: ObjectiveTables
    draws: DrawSpec


class KnownRequests:
    """The last sound requests to a teacher, where their keys are small. Safe to use from several
    threads."""

    def __init__(self) -> None:
        self._known = Recent[Key, Known](_MOST)

    def get(self, key: Key) -> Known | None:
        return self._known.get(key)

    def put(self, key: Key, message: pb.EstimateGradientRequest, checked: EstimateRequest) -> None:
        """A request and what it was checked to."""
        assert isinstance(checked.draws, DrawSpec)
        handles = [tuple(branch.conditionings) for branch in message.objective.branches]
        known = Known(len(checked.latents), handles, checked.objective, checked.draws)
        self._known.put(key, known)


def key_of(message: pb.EstimateGradientRequest) -> Key | None:
    """None where no other request is likely to be alike: with draws of the client's own, with
    reference latents, or with long tables."""
    objective = message.objective
    if message.WhichOneof("draws") != "sampling" or objective.WhichOneof("reference") is not None:
        return None
    if objective.ByteSize() + message.sampling.ByteSize() > _LARGEST_KEY_BYTES:
        return None
    return (
        objective.SerializeToString(),
        message.sampling.SerializeToString(),
        message.priority,
        message.return_draws,
        message.return_half_estimates,
    )
