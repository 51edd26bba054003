# ruff: noqa: ASYNC109 - the timeout is a gRPC deadline: it travels, and bounds the retries too
"""Refinements: running means until they are good enough."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Unpack

from carv_client import _replies, _requests
from carv_client._core import ClientCore
from carv_client._kept import LatentsLike
from carv_client._objective import ObjectiveSettings, pose
from carv_client._options import ObjectiveOptions
from carv_client._rpcs import REFINE_GRADIENT
from carv_client._types import (
    Conditionings,
    ControlVariate,
    Coupling,
    Proposal,
    RefinedEstimate,
    Sampler,
)

__all__ = ["RefinementCalls"]


class RefinementCalls(ClientCore):
    """``refine_gradient``."""

    async def refine_gradient(
        self,
        latents: LatentsLike,
        conditioning: Conditionings | None = None,
        *,
        target_relative_standard_error: float = 0.0,
        max_draws: int = 0,
        max_seconds: float = 0.0,
        seed: int | None = None,
        sampler: Sampler | None = None,
        proposal: Proposal | None = None,
        coupling: Coupling | None = None,
        control_variate: ControlVariate | None = None,
        history: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **objective: Unpack[ObjectiveOptions],
    ) -> AsyncGenerator[RefinedEstimate]:
        """Estimate the gradient of ``estimate_gradient`` until it is good enough: yields running
        means, at most about ten a second, and at last the final one.

        Each render ends by itself, at the first of the bounds given; at least one must be. The
        final mean is unbiased: how many draws it has is settled by draws that it does not rest
        on. Ends are planned ahead, so the standard error reached scatters around the target by
        some per cent; the one reached is in the reply. Closing the generator ends the call.

        Args:
            latents, conditioning: as in ``estimate_gradient``.
            target_relative_standard_error: √(noise variance) / ‖g‖ to aim at; 0: no target.
            max_draws: most draws of one render; 0: as many as the server's limit of evaluations
                leaves to each.
            max_seconds: end after so long with what there is; 0: a little ahead of the call's
                deadline, ``timeout``.
            seed: likewise; the same seed gives the same draws, and the same ends but for time.
            sampler, proposal, coupling, control_variate, history, priority: as in
                ``estimate_gradient``.
            objective: ``guidance_scale`` and all others of ``estimate_gradient`` that say what
                is estimated.

        Raises:
            InvalidRequestError: with every field that breaks the contract.
            InternalError: reason NON_FINITE_RESULT where the teacher gave NaN or infinity.
        """
        deadline = self._deadline(timeout)
        settings = ObjectiveSettings(**objective)
        question = await pose(self._handles, latents, conditioning, settings, deadline)
        request = _requests.refinement(
            _requests.sampling(0, sampler, proposal, coupling, control_variate, history),
            target=target_relative_standard_error,
            max_draws=max_draws,
            max_seconds=max_seconds,
        )
        question.put(request)
        _requests.set_priority(request, priority)
        _requests.set_seed(request, seed)
        fill = question.filler(self._handles, request)
        replies = self._handles.stream(REFINE_GRADIENT, request, fill, question.used, deadline)
        async with aclosing(replies):
            async for reply in replies:
                yield _replies.refined(reply)
