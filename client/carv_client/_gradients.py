# ruff: noqa: ASYNC109 - the timeout is a gRPC deadline: it travels, and bounds the retries too
"""Gradients: asked for and waited for, or submitted and collected later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Unpack

import numpy.typing as npt

from carv.v1 import teacher_service_pb2 as pb
from carv_client import _replies
from carv_client._auto import estimate_planned
from carv_client._config import ClientConfig
from carv_client._core import Randomness
from carv_client._drawing import DrawSettings, estimate_request
from carv_client._kept import LatentsLike
from carv_client._objective import ObjectiveSettings, Question, pose
from carv_client._options import EstimateOptions
from carv_client._pipeline import Pipeline, Submissions
from carv_client._rpcs import ESTIMATE_GRADIENT
from carv_client._teachers import TeacherCalls
from carv_client._transport import Deadline
from carv_client._types import (
    Branch,
    Conditionings,
    ControlVariate,
    Coupling,
    Draws,
    Estimate,
    Guidance,
    NamedWeighting,
    Proposal,
    Sampler,
    WireDtype,
)
from carv_client.planner import DrawPlanner

__all__ = ["GradientCalls"]

Send = Callable[[pb.EstimateGradientRequest, Deadline], Awaitable[pb.EstimateGradientResponse]]

_OBJECTIVE_FIELDS = frozenset(each.name for each in fields(ObjectiveSettings))


class GradientCalls(TeacherCalls):
    """``estimate_gradient``, ``submit``, ``planner``."""

    def __init__(self, config: ClientConfig, randomness: Randomness) -> None:
        super().__init__(config, randomness)
        self._planners: dict[str, DrawPlanner] = {}
        self._pipeline = Pipeline(self._transport)
        self._submissions: Submissions | None = None

    def planner(self, teacher: str | None = None) -> DrawPlanner:
        """The planner of ``draws="auto"`` for a teacher, where the call brings none of its own.

        One for each ``teacher`` as named by calls or their conditionings; None where they name
        none. Makes no call.
        """
        return self._planners.setdefault(teacher or "", DrawPlanner())

    async def estimate_gradient(
        self,
        latents: LatentsLike,
        conditioning: Conditionings | None = None,
        *,
        draws: Draws = 8,
        planner: DrawPlanner | None = None,
        guidance_scale: float = 7.5,
        guidance: Guidance = "standard",
        negative_prompt: str | None = None,
        seed: int | None = None,
        teacher: str | None = None,
        timestep_range: tuple[float, float] = (0.02, 0.98),
        prior: npt.ArrayLike | None = None,
        weighting: NamedWeighting | npt.ArrayLike = "sds",
        sampler: Sampler | None = None,
        proposal: Proposal | None = None,
        coupling: Coupling | None = None,
        control_variate: ControlVariate | None = None,
        history: str = "",
        branches: Sequence[Branch] | None = None,
        noise_coefficient: npt.ArrayLike = -1.0,
        reference_latents: LatentsLike | None = None,
        timesteps: npt.ArrayLike | None = None,
        noise_indices: npt.ArrayLike | None = None,
        signs: npt.ArrayLike | None = None,
        importance_weights: npt.ArrayLike | None = None,
        wire_dtype: WireDtype | None = None,
        return_draws: bool = False,
        return_half_estimates: bool = False,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Estimate:
        """Estimate the teacher's gradient at R renders from K draws of each.

        For each render r, an unbiased estimate of

            g_r = E_{t~p, ε~N(0,I)} [ w(t) · ( Σ_j a_j(t) · ε̂(z_t, t, c_j)  +  d(t) · ε ) ],
            z_t = α(t)·x_r + σ(t)·ε.

        The first group of arguments below says what is estimated; the second how, and never
        changes the expectation. Cost: R · K · branches evaluations of the teacher.

        Args:
            latents: x, [R, *event_shape]; float32, float16, or float64 (sent as float32). Or what
                ``keep_latents`` has given for them.
            conditioning: one for all renders, or R of them. None without ``branches`` means the
                unconditional teacher alone.
            guidance_scale: s, see ``guidance_branches``; 1 (standard) or 0 (text anchored) needs
                no unconditional branch and costs half.
            guidance: "standard" ε̂_u + s(ε̂_c − ε̂_u), or "text_anchored" ε̂_c + s(ε̂_c − ε̂_u).
            negative_prompt: stands in for the unconditional branch.
            timestep_range: p(t) uniform over these fractions of the schedule.
            prior: p(t) as one mass for each timestep, [N], in place of the range.
            weighting: w(t) by name, or one value for each timestep, [N].
            branches: the terms (a_j, c_j) themselves, in place of ``conditioning`` and guidance.
            noise_coefficient: d, a number or [N]. −1: score distillation; 0: the prediction alone.
            reference_latents: a second x, same shape, for branches that use it.

            draws: K, at least 1; left aside with explicit ``timesteps``. "auto": as many as the
                planner chooses from the costs and variances of past calls (``draws_spent`` says
                how many), now and then with half-estimates; the draws always come back too. The
                planner learns from the answer. May give an AmortisationWarning, once.
            planner: for "auto"; by default one that the client keeps for the teacher
                (``planner()``).
            sampler: how the points of the inverse CDF are placed: "iid"; "stratified" within
                each render; "global" over all draws; "nested" both. None: the server's choice.
            proposal: law that t is drawn from, "prior" p, "weight" ∝ p·|w|, or "adaptive" ∝ p
                times the root of a second moment learned from past draws; draws carry p/q.
            coupling: "iid", or "antithetic": draws in adjacent strata share ε, signs opposite.
            control_variate: "none", or "noise": c(t)·ε of mean zero is added to every draw, c
                fitted on past draws.
            history: label of the run whose past draws the adaptive proposal and the control
                variate learn from; at most 64 characters. Requests of the same teacher and
                objective with the same label share their past.
            seed: 0 ≤ seed < 2^64; the same seed gives the same draws on any server. None: the
                server picks one and says which.
            timesteps: explicit draws on the teacher's grid, integers [R, K], or [K] for every
                render. ``sampler``, ``proposal``, ``coupling``, ``control_variate`` and
                ``history`` do not apply then, and the estimate is the weighted mean over these
                draws, biased or not.
            noise_indices: integers like ``timesteps``, by default 0 .. K−1; draw k of render r
                uses ``signs · draw_noise(seed, r, index)``.
            signs: +1 or −1, by default +1.
            importance_weights: by default 1.

            wire_dtype: what latents travel as, by default their own dtype.
            return_draws: also return the timesteps, noise indices, signs, weights and norms.
            return_half_estimates: make the estimate as the mean of two independent ones from
                K/2 draws each, K even, and return both. Strata are half as many then, so the
                gradient is a little noisier than without.
            priority: −10 .. 10, higher first among the tenant's own waiting requests.

        Raises:
            InvalidRequestError: with every field that breaks the contract.
            InternalError: reason NON_FINITE_RESULT where the teacher gave NaN or infinity.
        """
        deadline = self._deadline(timeout)
        objective = ObjectiveSettings(
            guidance_scale=guidance_scale,
            guidance=guidance,
            negative_prompt=negative_prompt,
            teacher=teacher,
            timestep_range=timestep_range,
            prior=prior,
            weighting=weighting,
            branches=branches,
            noise_coefficient=noise_coefficient,
            reference_latents=reference_latents,
            wire_dtype=wire_dtype,
        )
        drawing = DrawSettings(
            draws=draws,
            planner=planner,
            seed=seed,
            sampler=sampler,
            proposal=proposal,
            coupling=coupling,
            control_variate=control_variate,
            history=history,
            timesteps=timesteps,
            noise_indices=noise_indices,
            signs=signs,
            importance_weights=importance_weights,
            return_draws=return_draws,
            return_half_estimates=return_half_estimates,
            priority=priority,
        )
        question = await pose(self._handles, latents, conditioning, objective, deadline)
        request = estimate_request(question, drawing)

        def send(
            request: pb.EstimateGradientRequest, deadline: Deadline
        ) -> Awaitable[pb.EstimateGradientResponse]:
            return self._transport.call(ESTIMATE_GRADIENT, request, deadline)

        return await self._answer(question, request, drawing, send, deadline)

    async def submit(
        self,
        latents: LatentsLike,
        conditioning: Conditionings | None = None,
        **options: Unpack[EstimateOptions],
    ) -> asyncio.Future[Estimate]:
        """Ask as ``estimate_gradient`` does, and do something else meanwhile: a future comes back
        as soon as the request is on its way.

            coming = client.submit(latents, conditioning, draws=8)  # await it on asyncio
            ...  # render the next view
            estimate = coming.result()  # await coming

        Requests share one stream and are answered in any order. At most
        ``ClientConfig.max_in_flight`` of them go without an answer; ``submit`` waits for a place.
        Arrays are copied before it returns. Cancelling the future cancels the request on the
        server. A future that nobody holds any more costs nothing once it is answered.

        A request without a seed is given one here. When the connection breaks it is sent again,
        as often as a call would be, with the same seed: the same noise, and the same timesteps
        too unless their law is learned from a past that another server does not have.

        With ``draws="auto"`` mark the work in between with ``planner.upstream()``: where it
        overlaps the waiting it cannot be told from it. The plan is the cheapest in the sum of
        both, whichever of them hides the other.

        Args:
            latents, conditioning, options: those of ``estimate_gradient``. ``timeout`` is for all
                from here to the answer, the wait for a place included.

        Raises:
            CarvError: what is found before the request is sent; the rest comes out of the future.
        """
        deadline = self._deadline(options.pop("timeout", None))
        given: dict[str, Any] = {**options}
        objective = ObjectiveSettings(
            **{name: given.pop(name) for name in _OBJECTIVE_FIELDS & given.keys()}
        )
        drawing = DrawSettings(**given)
        if drawing.seed is None:
            drawing = replace(drawing, seed=self._new_seed())
        question = await pose(self._handles, latents, conditioning, objective, deadline)
        request = estimate_request(question, drawing)
        submissions = await self._opened(question.teacher, deadline)
        return await submissions.start(
            lambda: self._answer(
                question, request, drawing, self._pipeline.call, deadline, overlapping=True
            ),
            deadline,
        )

    async def close(self) -> None:
        """Close the connection. Calls and submitted requests in flight end with
        ClientClosedError."""
        if self._submissions is not None:
            self._submissions.close()
        await self._pipeline.close()
        await super().close()

    async def _answer(
        self,
        question: Question,
        request: pb.EstimateGradientRequest,
        drawing: DrawSettings,
        send: Send,
        deadline: Deadline,
        *,
        overlapping: bool = False,
    ) -> Estimate:
        async def ask(request: pb.EstimateGradientRequest, deadline: Deadline) -> Estimate:
            fill = question.filler(self._handles, request)
            reply = await self._handles.call(
                lambda: send(request, deadline), fill, question.used, deadline
            )
            return _replies.estimate(reply)

        if drawing.fixed is not None:
            return await ask(request, deadline)
        name = question.teacher
        known = await self.get_teacher(name or None, timeout=deadline.remaining())
        planner = drawing.planner or self.planner(name)
        return await estimate_planned(
            ask,
            request,
            planner,
            known,
            deadline,
            renders=question.renders,
            overlapping=overlapping,
        )

    async def _opened(self, teacher: str, deadline: Deadline) -> Submissions:
        """With as many places as client and server allow."""
        if self._submissions is None:
            known = await self.get_teacher(teacher or None, timeout=deadline.remaining())
            most = self.config.max_in_flight
            most = min(most, known.limits.max_stream_requests or most)
            self._submissions = self._submissions or Submissions(most)
        return self._submissions
