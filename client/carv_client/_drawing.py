"""From the arguments that say how a gradient is estimated to an EstimateGradient request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from carv.v1 import teacher_service_pb2 as pb
from carv_client import _requests
from carv_client._auto import fixed_draws
from carv_client._errors import invalid
from carv_client._objective import Question
from carv_client._types import ControlVariate, Coupling, Draws, Proposal, Sampler
from carv_client.planner import DrawPlanner

__all__ = ["DrawSettings", "estimate_request"]


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """The keyword arguments of ``estimate_gradient`` that say how.

    Raises:
        InvalidRequestError: ``draws`` and ``planner`` contradict each other.
    """

    draws: Draws = 8
    planner: DrawPlanner | None = None
    seed: int | None = None
    sampler: Sampler | None = None
    proposal: Proposal | None = None
    coupling: Coupling | None = None
    control_variate: ControlVariate | None = None
    history: str = ""
    timesteps: npt.ArrayLike | None = None
    noise_indices: npt.ArrayLike | None = None
    signs: npt.ArrayLike | None = None
    importance_weights: npt.ArrayLike | None = None
    return_draws: bool = False
    return_half_estimates: bool = False
    priority: int = 0

    def __post_init__(self) -> None:
        _ = self.fixed

    @property
    def fixed(self) -> int | None:
        """K, or None where it is for a planner to choose."""
        return fixed_draws(self.draws, self.planner, explicit=self.timesteps is not None)


def estimate_request(question: Question, settings: DrawSettings) -> pb.EstimateGradientRequest:
    """The request, without handles; K is 0 where a planner is to choose it.

    Raises:
        InvalidRequestError: contradictory arguments.
    """
    request = pb.EstimateGradientRequest(
        return_draws=settings.return_draws,
        return_half_estimates=settings.return_half_estimates,
    )
    question.put(request)
    tables = (settings.noise_indices, settings.signs, settings.importance_weights)
    choices = (settings.sampler, settings.proposal, settings.coupling, settings.control_variate)
    if settings.timesteps is not None:
        if any(choice is not None for choice in (*choices, settings.history or None)):
            raise invalid(
                "timesteps",
                "explicit draws take no sampler, proposal, coupling, control_variate, history",
            )
        request.explicit_draws.CopyFrom(
            _requests.explicit_draws(question.renders, settings.timesteps, *tables)
        )
    elif any(table is not None for table in tables):
        raise invalid("timesteps", "explicit draws need timesteps")
    else:
        draws = settings.fixed or 0
        request.sampling.CopyFrom(_requests.sampling(draws, *choices, settings.history))
    _requests.set_priority(request, settings.priority)
    _requests.set_seed(request, settings.seed)
    return request
