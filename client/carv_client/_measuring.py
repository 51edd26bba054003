# ruff: noqa: ASYNC109 - the timeout is a gRPC deadline: it travels, and bounds the retries too
"""Calls that look at the teacher itself: raw predictions and profiles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Unpack

import grpc
import numpy as np
import numpy.typing as npt

from carv.v1 import teacher_service_pb2 as pb
from carv_client import _replies, _requests
from carv_client._core import ClientCore
from carv_client._errors import InternalError, invalid
from carv_client._handles import Handled
from carv_client._kept import KeptLatents, LatentsLike
from carv_client._objective import (
    ObjectiveSettings,
    encode_latents,
    one_teacher,
    pose,
    render_count,
)
from carv_client._options import ObjectiveOptions
from carv_client._profile_types import TeacherProfile
from carv_client._rpcs import PREDICT_NOISE, PROFILE_TEACHER
from carv_client._types import (
    Conditionings,
    NoisePrediction,
    WireDtype,
    as_tuple,
)

__all__ = ["MeasuringCalls"]


class MeasuringCalls(ClientCore):
    """``predict_noise``, ``profile_teacher``."""

    async def predict_noise(
        self,
        latents: LatentsLike | None = None,
        conditioning: Conditionings | None = None,
        *,
        noisy_latents: npt.ArrayLike | None = None,
        timesteps: npt.ArrayLike,
        noise_indices: npt.ArrayLike | None = None,
        signs: npt.ArrayLike | None = None,
        seed: int | None = None,
        teacher: str | None = None,
        wire_dtype: WireDtype | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> NoisePrediction:
        """The teacher's own ε̂(z_t, t, c), one evaluation for each draw, no guidance.

        Args:
            latents: x, [R, *event_shape]; the server makes z_t = α·x + σ·sign·ε from the draws.
            conditioning: one, or one for each row. None: unconditional.
            noisy_latents: z_t itself in place of x, [R, *event_shape].
            timesteps: integers on the teacher's grid: [R, K], or [K] for every render; with
                ``noisy_latents`` one for each row, [R] or [R, 1].
            noise_indices: as in ``estimate_gradient``; not with ``noisy_latents``.
            signs, seed, priority: likewise.

        Returns:
            ``noise`` [R, K, *event_shape], K = 1 with ``noisy_latents``.
        """
        deadline = self._deadline(timeout)
        given = None if conditioning is None else as_tuple(conditioning)
        kept = [latents] if isinstance(latents, KeptLatents) else []
        teacher = one_teacher(teacher or "", [*(given or ()), *kept])
        request = pb.PredictNoiseRequest(teacher=teacher)
        if latents is not None and noisy_latents is None:
            encoded = encode_latents("latents", latents, wire_dtype)
            if not isinstance(encoded, KeptLatents):
                request.latents.CopyFrom(encoded)
            table = _requests.explicit_draws(render_count(encoded), timesteps, noise_indices, signs)
            request.explicit_draws.CopyFrom(table)
        elif noisy_latents is not None and latents is None:
            if noise_indices is not None or signs is not None:
                raise invalid("noisy_latents", "takes no noise indices and no signs")
            noisy = _requests.tensor("noisy_latents", noisy_latents, wire_dtype)
            request.noisy_latents.CopyFrom(noisy)
            steps = np.asarray(timesteps)
            steps = steps[:, np.newaxis] if steps.ndim == 1 else steps
            request.explicit_draws.timesteps.CopyFrom(_requests.tensor("timesteps", steps))
        else:
            raise invalid("latents", "takes exactly one of latents and noisy_latents")
        _requests.set_priority(request, priority)
        _requests.set_seed(request, seed)
        if given is None:
            given = (await self._handles.background(teacher, None, deadline),)
        used: list[Handled] = [*given, *kept]
        conditionings = given

        def fill() -> None:
            request.conditionings[:] = self._handles.of(conditionings)
            for latents in kept:
                request.latents_handle = self._handles.now(latents)

        def send() -> Awaitable[pb.PredictNoiseResponse]:
            return self._transport.call(PREDICT_NOISE, request, deadline)

        reply = await self._handles.call(send, fill, used, deadline)
        return _replies.noise_prediction(reply)

    async def profile_teacher(
        self,
        latents: LatentsLike,
        conditioning: Conditionings | None = None,
        *,
        bins: int = 24,
        draws_per_bin: int = 8,
        seed: int | None = None,
        history: str = "",
        warm: bool = False,
        progress: Callable[[float], object] | None = None,
        priority: int = 0,
        timeout: float | None = None,
        **objective: Unpack[ObjectiveOptions],
    ) -> TeacherProfile:
        """Measure the integrand f over the noise levels at R renders: where the variance of
        ``estimate_gradient`` comes from, and what each law of timesteps makes of it.

        In each of ``bins`` bins of log-SNR, ``draws_per_bin`` draws of each render, as pairs of
        opposite noise at one timestep. Cost: R · bins · draws_per_bin · branches evaluations,
        bounded like those of one estimate. Results are means over renders.

        Args:
            latents, conditioning: as in ``estimate_gradient``.
            bins: 2 .. 64; fewer come back where the prior has fewer timesteps.
            draws_per_bin: even, 2 .. 1024. From two draws a bin there is no telling noise from
                mean: squared means, errors and variances are NaN then.
            seed: as in ``estimate_gradient``; shares no draw with an estimate of that seed.
            history: whose adaptive proposal is reported too.
            warm: add what was measured to that history, so that it starts warm.
            progress: told the share of the draws done, rising to 1. Called on the event loop;
                by the blocking client in its background thread.
            priority: as in ``estimate_gradient``.
            objective: ``guidance_scale`` and all others of ``estimate_gradient`` that say what
                is estimated.

        Raises:
            InvalidRequestError: with every field that breaks the contract.
        """
        deadline = self._deadline(timeout)
        settings = ObjectiveSettings(**objective)
        question = await pose(self._handles, latents, conditioning, settings, deadline)
        request = _requests.profile(
            bins=bins,
            draws_per_bin=draws_per_bin,
            history=history,
            warm=warm,
        )
        question.put(request)
        _requests.set_priority(request, priority)
        _requests.set_seed(request, seed)
        fill = question.filler(self._handles, request)
        replies = self._handles.stream(PROFILE_TEACHER, request, fill, question.used, deadline)
        async with aclosing(replies):
            async for reply in replies:
                if progress is not None:
                    progress(reply.progress)
                if reply.HasField("profile"):
                    return _replies.profile(reply.profile)
        raise InternalError("the stream ended without a profile", grpc.StatusCode.INTERNAL)
