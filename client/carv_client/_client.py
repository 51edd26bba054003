# ruff: noqa: ASYNC109 - the timeout is a gRPC deadline: it travels, and bounds the retries too
"""The client. Asynchronous; ``_sync`` offers the same methods to blocking code."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self, Unpack, overload

import grpc
import numpy as np
import numpy.typing as npt

from carv.v1 import teacher_service_pb2 as pb
from carv_client import _replies, _requests
from carv_client._auto import estimate_planned, fixed_draws
from carv_client._config import DEFAULT_ADDRESS, ClientConfig
from carv_client._errors import InternalError, invalid
from carv_client._handles import Handles
from carv_client._objective import ObjectiveSettings, one_teacher, pose
from carv_client._profile_types import TeacherProfile
from carv_client._transport import (
    ESTIMATE_GRADIENT,
    GET_TEACHER,
    LIST_TEACHERS,
    PREDICT_NOISE,
    PROFILE_TEACHER,
    REFINE_GRADIENT,
    Deadline,
    Transport,
)
from carv_client._types import (
    Branch,
    Conditioning,
    Conditionings,
    ControlVariate,
    Coupling,
    Draws,
    Estimate,
    Guidance,
    NamedWeighting,
    NoisePrediction,
    ObjectiveOptions,
    Proposal,
    RefinedEstimate,
    Sampler,
    Teacher,
    WireDtype,
    as_tuple,
)
from carv_client.planner import DrawPlanner

__all__ = ["AsyncTeacherClient"]


class AsyncTeacherClient:
    """A client of one CARV server, for asyncio.

    Belongs to the event loop that first uses it; any number of calls may be in flight at once.
    Every method raises ``CarvError`` and its kinds, takes ``timeout`` in seconds (by default
    ``ClientConfig.timeout_seconds``), and takes ``teacher`` as an id (by default that of the
    conditioning given, else the server's first).

    Args:
        target: address of the server, ``host:port``, or a whole configuration.
        jitter: uniform on [0, 1), to spread retries; a generator of its own by default.
    """

    def __init__(
        self,
        target: str | ClientConfig = DEFAULT_ADDRESS,
        *,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self.config = target if isinstance(target, ClientConfig) else ClientConfig(address=target)
        self._transport = Transport(self.config, jitter or random.Random().random)
        self._handles = Handles(self._transport)
        self._teachers: dict[str, Teacher] = {}
        self._planners: dict[str, DrawPlanner] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls in flight end with ClientClosedError."""
        await self._transport.close()

    def planner(self, teacher: str | None = None) -> DrawPlanner:
        """The planner of ``draws="auto"`` for a teacher, where the call brings none of its own.

        One for each ``teacher`` as named by calls or their conditionings; None where they name
        none. Makes no call.
        """
        return self._planners.setdefault(teacher or "", DrawPlanner())

    async def list_teachers(self, *, timeout: float | None = None) -> list[Teacher]:
        """All teachers of the server, without their schedules; the first is the default."""
        request = pb.ListTeachersRequest()
        reply = await self._transport.call(LIST_TEACHERS, request, self._deadline(timeout))
        return [_replies.teacher(message) for message in reply.teachers]

    async def get_teacher(
        self, teacher: str | None = None, *, refresh: bool = False, timeout: float | None = None
    ) -> Teacher:
        """One teacher, with its schedule. Asked once, then remembered, unless ``refresh``: only
        ``evaluation_seconds`` changes while a server runs."""
        key = teacher or ""
        if refresh or key not in self._teachers:
            request = pb.GetTeacherRequest(teacher=key)
            reply = await self._transport.call(GET_TEACHER, request, self._deadline(timeout))
            self._teachers[key] = _replies.teacher(reply.teacher)
        return self._teachers[key]

    @overload
    async def create_conditioning(
        self,
        prompt: str | None = None,
        *,
        class_id: int | None = None,
        tensors: Mapping[str, npt.ArrayLike] | None = None,
        unconditional: bool = False,
        blend: Sequence[tuple[Conditioning, float]] | None = None,
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> Conditioning: ...
    @overload
    async def create_conditioning(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> list[Conditioning]: ...
    @overload
    async def create_conditioning(
        self,
        *,
        class_id: list[int] | tuple[int, ...],
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> list[Conditioning]: ...
    async def create_conditioning(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        class_id: int | Sequence[int] | None = None,
        tensors: Mapping[str, npt.ArrayLike] | None = None,
        unconditional: bool = False,
        blend: Sequence[tuple[Conditioning, float]] | None = None,
        teacher: str | None = None,
        timeout: float | None = None,
    ) -> Conditioning | list[Conditioning]:
        """Have the server embed and keep a conditioning. Give exactly one source.

        Args:
            prompt: a text, or several for a list of conditionings in the same order.
            class_id: a class, or several.
            tensors: the teacher's own conditioning tensors of one row, by name (see
                ``Teacher.conditioning_tensors``).
            unconditional: the empty prompt, the null class, or nothing at all.
            blend: (conditioning, weight) pairs; weights at least 0 that sum to 1. A blend of
                "front view" and "side view" is how view-dependent prompts turn smoothly.

        Raises:
            InvalidRequestError: a word outside the vocabulary, a class out of range, no or more
                than one source, and so on.
        """
        given = [
            name
            for name, value in (
                ("prompt", prompt),
                ("class_id", class_id),
                ("tensors", tensors),
                ("unconditional", unconditional or None),
                ("blend", blend),
            )
            if value is not None
        ]
        if len(given) != 1:
            raise invalid("source", f"takes exactly one source, got {', '.join(given) or 'none'}")
        deadline, teacher = self._deadline(timeout), teacher or ""
        create = self._handles.create
        if prompt is not None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            parts = [(text, _requests.source(prompts=[text])) for text in prompts]
            made = await create(parts, _requests.source(prompts=prompts), teacher, deadline)
            return made[0] if isinstance(prompt, str) else made
        if class_id is not None:
            ids = list(class_id) if isinstance(class_id, Sequence) else [class_id]
            parts = [(f"class {value}", _requests.source(class_ids=[value])) for value in ids]
            made = await create(parts, _requests.source(class_ids=ids), teacher, deadline)
            return made if isinstance(class_id, Sequence) else made[0]
        blended: tuple[Conditioning, ...] = ()
        if blend is not None:
            blended = as_tuple([part for part, _ in blend])
            source = _requests.source(blend_weights=[weight for _, weight in blend])
            label = " + ".join(f"{weight:g} · {part.label}" for part, weight in blend)
            teacher = one_teacher(teacher, blended)
        elif tensors is not None:
            source, label = _requests.source(tensors=tensors), f"tensors {', '.join(tensors)}"
        else:
            source, label = _requests.source(), "unconditional"
        return (await create([(label, source)], source, teacher, deadline, blended))[0]

    async def estimate_gradient(
        self,
        latents: npt.ArrayLike,
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
        reference_latents: npt.ArrayLike | None = None,
        timesteps: npt.ArrayLike | None = None,
        noise_indices: npt.ArrayLike | None = None,
        signs: npt.ArrayLike | None = None,
        importance_weights: npt.ArrayLike | None = None,
        wire_dtype: WireDtype | None = None,
        return_draws: bool = False,
        return_half_estimates: bool = False,
        timeout: float | None = None,
    ) -> Estimate:
        """Estimate the teacher's gradient at R renders from K draws of each.

        For each render r, an unbiased estimate of

            g_r = E_{t~p, ε~N(0,I)} [ w(t) · ( Σ_j a_j(t) · ε̂(z_t, t, c_j)  +  d(t) · ε ) ],
            z_t = α(t)·x_r + σ(t)·ε.

        The first group of arguments below says what is estimated; the second how, and never
        changes the expectation. Cost: R · K · branches evaluations of the teacher.

        Args:
            latents: x, [R, *event_shape]; float32, float16, or float64 (sent as float32).
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

        Raises:
            InvalidRequestError: with every field that breaks the contract.
            InternalError: reason NON_FINITE_RESULT where the teacher gave NaN or infinity.
        """
        deadline = self._deadline(timeout)
        fixed = fixed_draws(draws, planner, explicit=timesteps is not None)
        settings = ObjectiveSettings(
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
        question = await pose(self._handles, latents, conditioning, settings, deadline)
        request = pb.EstimateGradientRequest(
            teacher=question.teacher,
            latents=question.latents,
            objective=question.objective,
            return_draws=return_draws,
            return_half_estimates=return_half_estimates,
        )
        if timesteps is not None:
            choices = (sampler, proposal, coupling, control_variate, history or None)
            if any(choice is not None for choice in choices):
                raise invalid(
                    "timesteps",
                    "explicit draws take no sampler, proposal, coupling, control_variate, history",
                )
            renders = _requests.render_count(question.latents)
            request.explicit_draws.CopyFrom(
                _requests.explicit_draws(
                    renders, timesteps, noise_indices, signs, importance_weights
                )
            )
        elif any(table is not None for table in (noise_indices, signs, importance_weights)):
            raise invalid("timesteps", "explicit draws need timesteps")
        else:
            choices = (sampler, proposal, coupling, control_variate, history)
            request.sampling.CopyFrom(_requests.sampling(fixed or 0, *choices))
        _set_seed(request, seed)

        async def ask(request: pb.EstimateGradientRequest, deadline: Deadline) -> Estimate:
            fill = question.filler(self._handles, request.objective)
            used = question.conditionings
            reply = await self._handles.call(ESTIMATE_GRADIENT, request, fill, used, deadline)
            return _replies.estimate(reply)

        if fixed is not None:
            return await ask(request, deadline)
        name = question.teacher
        known = await self.get_teacher(name or None, timeout=deadline.remaining())
        planner = planner or self.planner(name)
        return await estimate_planned(ask, request, planner, known, deadline)

    async def refine_gradient(
        self,
        latents: npt.ArrayLike,
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
            sampler, proposal, coupling, control_variate, history: as in ``estimate_gradient``.
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
            question.teacher,
            question.latents,
            question.objective,
            _requests.sampling(0, sampler, proposal, coupling, control_variate, history),
            target=target_relative_standard_error,
            max_draws=max_draws,
            max_seconds=max_seconds,
        )
        _set_seed(request, seed)
        fill = question.filler(self._handles, request.objective)
        replies = self._handles.stream(
            REFINE_GRADIENT, request, fill, question.conditionings, deadline
        )
        async with aclosing(replies):
            async for reply in replies:
                yield _replies.refined(reply)

    async def predict_noise(
        self,
        latents: npt.ArrayLike | None = None,
        conditioning: Conditionings | None = None,
        *,
        noisy_latents: npt.ArrayLike | None = None,
        timesteps: npt.ArrayLike,
        noise_indices: npt.ArrayLike | None = None,
        signs: npt.ArrayLike | None = None,
        seed: int | None = None,
        teacher: str | None = None,
        wire_dtype: WireDtype | None = None,
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
            signs: likewise.
            seed: likewise.

        Returns:
            ``noise`` [R, K, *event_shape], K = 1 with ``noisy_latents``.
        """
        deadline = self._deadline(timeout)
        given = None if conditioning is None else as_tuple(conditioning)
        teacher = one_teacher(teacher or "", given or ())
        request = pb.PredictNoiseRequest(teacher=teacher)
        if latents is not None and noisy_latents is None:
            request.latents.CopyFrom(_requests.tensor("latents", latents, wire_dtype))
            renders = _requests.render_count(request.latents)
            table = _requests.explicit_draws(renders, timesteps, noise_indices, signs)
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
        _set_seed(request, seed)
        if given is None:
            given = (await self._handles.background(teacher, None, deadline),)
        used = given

        def fill() -> None:
            request.conditionings[:] = self._handles.of(used)

        reply = await self._handles.call(PREDICT_NOISE, request, fill, used, deadline)
        return _replies.noise_prediction(reply)

    async def profile_teacher(
        self,
        latents: npt.ArrayLike,
        conditioning: Conditionings | None = None,
        *,
        bins: int = 24,
        draws_per_bin: int = 8,
        seed: int | None = None,
        history: str = "",
        warm: bool = False,
        progress: Callable[[float], object] | None = None,
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
            objective: ``guidance_scale`` and all others of ``estimate_gradient`` that say what
                is estimated.

        Raises:
            InvalidRequestError: with every field that breaks the contract.
        """
        deadline = self._deadline(timeout)
        settings = ObjectiveSettings(**objective)
        question = await pose(self._handles, latents, conditioning, settings, deadline)
        request = _requests.profile(
            question.teacher,
            question.latents,
            question.objective,
            bins=bins,
            draws_per_bin=draws_per_bin,
            history=history,
            warm=warm,
        )
        _set_seed(request, seed)
        fill = question.filler(self._handles, request.objective)
        replies = self._handles.stream(
            PROFILE_TEACHER, request, fill, question.conditionings, deadline
        )
        async with aclosing(replies):
            async for reply in replies:
                if progress is not None:
                    progress(reply.progress)
                if reply.HasField("profile"):
                    return _replies.profile(reply.profile)
        raise InternalError("the stream ended without a profile", grpc.StatusCode.INTERNAL)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self.config.timeout_seconds if timeout is None else timeout)


def _set_seed(
    request: pb.EstimateGradientRequest
    | pb.RefineGradientRequest
    | pb.PredictNoiseRequest
    | pb.ProfileTeacherRequest,
    seed: int | None,
) -> None:
    if seed is None:
        return
    try:
        request.seed = seed
    except (TypeError, ValueError) as error:
        raise invalid("seed", f"{seed!r} is not an integer in [0, 2^64)") from error
