"""TeacherService's handlers: check, call, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from carv.errors import FieldViolation, Reason
from carv.tensors import encode_tensor, write_tensor
from carv.v1 import conditioning_pb2, latents_pb2, teacher_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.call import Call
from carv_server.conditioner import Conditioner
from carv_server.conditioning import ConditioningStore, blend_handle, source_handles
from carv_server.encode import (
    encode_diagnostics,
    encode_draws,
    encode_profile,
    encode_refined,
    encode_sampling,
    encode_teacher,
    encode_time,
)
from carv_server.errors import RequestError
from carv_server.estimate import estimate_gradient, predict_noise
from carv_server.history import DrawHistories
from carv_server.latents import LatentStore, latents_handle
from carv_server.observability.notes import Sampled
from carv_server.profile import profile_teacher
from carv_server.refine.call import refine_gradient
from carv_server.replicas.protocol import Conditioning, Encoder
from carv_server.request import SMALL_BYTES, DrawSpec, RequestLimits
from carv_server.scheduler import Scheduler
from carv_server.validation.known import KnownRequests
from carv_server.validation.latents import check_create_latents
from carv_server.validation.objective import ObjectiveCache
from carv_server.validation.profile import check_profile
from carv_server.validation.recent import Recent
from carv_server.validation.refine import check_refine
from carv_server.validation.requests import check_estimate, check_predict
from carv_server.validation.sources import check_blend, check_source
from carv_server.validation.subject import RequestContext

__all__ = ["Call", "ServedTeacher", "TeacherService"]

_Result = TypeVar("_Result")

# By tenant and teacher: small, but for the tables of the objectives in use.
_MOST_CONTEXTS = 1024


@dataclass(frozen=True)
class ServedTeacher:
    """A teacher, what describes it and encodes for it, the queue in front of its replicas, what
    their past draws taught, and the latents kept for it. Without limits it
    has the server's own."""

    id: str
    replicas: Sequence[Encoder]
    scheduler: Scheduler
    histories: DrawHistories
    latents: LatentStore
    limits: RequestLimits | None = None


class TeacherService:
    """The RPCs over messages; transport and status codes are the front's.

    Every handler raises RequestError. Checks, which read every latent, run on ``workers`` where
    these are many, so that the event loop keeps answering.

    Args:
        teachers: by id, in the order of registration; the first is the default.
        new_seed: a fresh 64-bit seed.
    """

    def __init__(
        self,
        teachers: Mapping[str, ServedTeacher],
        store: ConditioningStore,
        limits: RequestLimits,
        max_message_bytes: int,
        new_seed: Callable[[], int],
        workers: ThreadPoolExecutor,
    ) -> None:
        self._teachers = teachers
        self._store = store
        self._conditioner = Conditioner(store)
        self._limits = limits
        self._max_message_bytes = max_message_bytes
        self._new_seed = new_seed
        self._workers = workers
        # By tenant too: what is kept between requests is private to it.
        self._contexts = Recent[tuple[str, str], RequestContext](_MOST_CONTEXTS)

    async def list_teachers(
        self, request: pb.ListTeachersRequest, call: Call
    ) -> pb.ListTeachersResponse:
        return pb.ListTeachersResponse(
            teachers=[
                self._encode(teacher, with_schedule=False)
                for teacher in self._teachers.values()
                if call.access.allows(teacher.id)
            ]
        )

    async def get_teacher(self, request: pb.GetTeacherRequest, call: Call) -> pb.GetTeacherResponse:
        teacher = self._teacher(request.teacher, call)
        return pb.GetTeacherResponse(teacher=self._encode(teacher, with_schedule=True))

    async def create_conditioning(
        self, request: pb.CreateConditioningRequest, call: Call
    ) -> pb.CreateConditioningResponse:
        teacher = self._teacher(request.teacher, call)
        digest = teacher.replicas[0].description.digest
        if request.source.WhichOneof("source") == "blend":
            blend, tensors = await self._aside(
                lambda: check_blend(request.source.blend, self._resolver(teacher, call.tenant))
            )
            handle = blend_handle(digest, blend)
            kept = {handle: self._store.put(handle, teacher.id, tensors, call.tenant)}
            handles = [handle]
        else:
            spec = teacher.replicas[0].description.conditioning
            limits = teacher.limits or self._limits
            source = await self._aside(lambda: check_source(request.source, spec, limits))
            handles = source_handles(digest, source)
            encoder = teacher.replicas[0]
            kept = await self._conditioner.keep(teacher.id, encoder, source, handles, call)
        return pb.CreateConditioningResponse(
            conditionings=[
                conditioning_pb2.Conditioning(handle=h, expire_time=encode_time(kept[h]))
                for h in handles
            ],
            teacher_digest=digest,
        )

    async def create_latents(
        self, request: pb.CreateLatentsRequest, call: Call
    ) -> pb.CreateLatentsResponse:
        teacher = self._teacher(request.teacher, call)
        description, store = teacher.replicas[0].description, teacher.latents
        limits = teacher.limits or self._limits

        def keep() -> latents_pb2.Latents:
            checked = check_create_latents(request, description, limits, store.config)
            handle = latents_handle(description.digest, request.latents)
            expires = store.put(handle, checked, call.tenant)
            return latents_pb2.Latents(handle=handle, expire_time=encode_time(expires))

        return pb.CreateLatentsResponse(
            latents=await self._aside(keep), teacher_digest=description.digest
        )

    async def estimate_gradient(
        self, request: pb.EstimateGradientRequest, call: Call
    ) -> pb.EstimateGradientResponse:
        teacher = self._teacher(request.teacher, call)
        context = self._context(teacher, call.tenant)
        checked = await self._checked(call, lambda: check_estimate(request, context))
        with call.charged(checked.evaluations):
            estimate = await estimate_gradient(
                checked, teacher.scheduler, teacher.histories, call.terms(request.priority)
            )
        spec, sampling, halves = checked.draws, estimate.sampling, estimate.half_estimates
        draws = estimate.draws_spent
        call.notes.spent(draws, estimate.evaluations, estimate.compute_seconds)
        call.notes.sampled = Sampled(
            checked.objective,
            tuple([branch.use_reference for branch in checked.branches]),
            spec.history if isinstance(spec, DrawSpec) else "",
            sampling,
            estimate.noise_variance,
            estimate.effective_sample_size,
            draws // len(checked.latents),
        )
        reply = pb.EstimateGradientResponse(
            diagnostics=encode_diagnostics(estimate),
            teacher_digest=teacher.replicas[0].description.digest,
            seed=checked.seed,
            sampling=encode_sampling(sampling, spec.draws, spec.history)
            if isinstance(spec, DrawSpec) and sampling is not None
            else None,
            draws_spent=draws,
            evaluations_spent=estimate.evaluations,
            timings=_timings(call, estimate.queue_seconds, estimate.compute_seconds),
            draw_table=encode_draws(estimate) if checked.return_draws else None,
            half_estimates=None if halves is None else encode_tensor(halves),
        )
        write_tensor(reply.gradient, estimate.gradient)
        return reply

    async def refine_gradient(
        self, request: pb.RefineGradientRequest, call: Call
    ) -> AsyncGenerator[pb.RefineGradientResponse]:
        teacher = self._teacher(request.teacher, call)
        context = self._context(teacher, call.tenant)
        checked = await self._aside(lambda: check_refine(request, context))
        call.notes.checked()
        refinement = refine_gradient(
            checked,
            teacher.scheduler,
            teacher.histories,
            call.metered_terms(request.priority, teacher.id),
            self._workers,
        )
        async with aclosing(refinement) as means:
            async for refined in means:
                call.notes.spent(
                    refined.draws_spent, refined.evaluations_spent, refined.compute_seconds
                )
                call.notes.sampled = Sampled(
                    checked.objective,
                    tuple([branch.use_reference for branch in checked.branches]),
                    checked.history,
                    refined.sampling,
                    refined.noise_variance,
                    None,
                    0,
                )
                yield encode_refined(
                    refined,
                    history=checked.history,
                    seed=checked.seed,
                    teacher_digest=teacher.replicas[0].description.digest,
                    timings=_timings(call, refined.queue_seconds, refined.compute_seconds),
                )

    async def predict_noise(
        self, request: pb.PredictNoiseRequest, call: Call
    ) -> pb.PredictNoiseResponse:
        teacher = self._teacher(request.teacher, call)
        context = self._context(teacher, call.tenant)
        checked = await self._checked(call, lambda: check_predict(request, context))
        draws = checked.plan.timesteps.size
        with call.charged(draws):
            prediction = await predict_noise(
                checked, teacher.scheduler, call.terms(request.priority)
            )
        call.notes.spent(draws, prediction.evaluations, prediction.compute_seconds)
        return pb.PredictNoiseResponse(
            noise_prediction=encode_tensor(prediction.noise),
            teacher_digest=teacher.replicas[0].description.digest,
            seed=checked.seed,
            evaluations_spent=prediction.evaluations,
            draws_spent=draws,
            timings=_timings(call, prediction.queue_seconds, prediction.compute_seconds),
        )

    async def profile_teacher(
        self, request: pb.ProfileTeacherRequest, call: Call
    ) -> AsyncGenerator[pb.ProfileTeacherResponse]:
        teacher = self._teacher(request.teacher, call)
        context = self._context(teacher, call.tenant)
        checked = await self._aside(lambda: check_profile(request, context))
        call.notes.checked()
        description = teacher.replicas[0].description
        measuring = profile_teacher(
            checked,
            description.schedule,
            teacher.scheduler,
            teacher.histories,
            call.metered_terms(request.priority, teacher.id),
        )
        async with aclosing(measuring) as steps:
            async for step in steps:
                profile = None
                if step.result is not None:
                    measured = step.result
                    call.notes.spent(measured.draws, measured.evaluations, 0.0)
                    profile = encode_profile(
                        measured,
                        checked.objective,
                        evaluation_seconds=teacher.scheduler.evaluation_seconds,
                        digest=description.digest,
                        seed=checked.seed,
                    )
                yield pb.ProfileTeacherResponse(progress=step.share, profile=profile)

    def _teacher(self, teacher_id: str, call: Call) -> ServedTeacher:
        access, known = call.access, self._teachers
        if access.teachers is not None:
            known = {name: found for name, found in known.items() if access.allows(name)}
        first = next(iter(known), teacher_id)
        teacher = known.get(teacher_id or first)
        if teacher is None:
            # A tenant that may not use all does not learn which others there are.
            own = access.teachers is not None
            named = f"no teacher {teacher_id[:80]!r} {'for you' if own else 'here'}"
            message = f"{named}; known: {', '.join(known) or 'none'}"
            reason = Reason.TEACHER_NOT_ALLOWED if own else Reason.TEACHER_NOT_FOUND
            raise RequestError(reason, message, violations=[FieldViolation("teacher", message)])
        call.notes.teacher = teacher.id
        return teacher

    def _encode(self, teacher: ServedTeacher, *, with_schedule: bool) -> teacher_pb2.Teacher:
        replica = teacher.replicas[0]
        return encode_teacher(
            teacher.id,
            replica.description,
            device=replica.device,
            limits=teacher.limits or self._limits,
            kept_latents=teacher.latents.config,
            max_message_bytes=self._max_message_bytes,
            evaluation_seconds=teacher.scheduler.evaluation_seconds,
            with_schedule=with_schedule,
        )

    def _context(self, teacher: ServedTeacher, tenant: str) -> RequestContext:
        key = (tenant, teacher.id)
        context = self._contexts.get(key)
        if context is None:
            context = RequestContext(
                teacher.replicas[0].description,
                teacher.limits or self._limits,
                self._max_message_bytes,
                self._resolver(teacher, tenant),
                lambda handle: teacher.latents.get(handle, tenant),
                ObjectiveCache(),
                KnownRequests(),
                self._new_seed,
            )
            self._contexts.put(key, context)
        return context

    def _resolver(
        self, teacher: ServedTeacher, tenant: str
    ) -> Callable[[str], Conditioning | None]:
        return lambda handle: self._store.get(handle, teacher.id, tenant)

    async def _checked(self, call: Call, check: Callable[[], _Result]) -> _Result:
        checked = check() if call.size <= SMALL_BYTES else await self._aside(check)
        call.notes.checked()
        return checked

    async def _aside(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function)


def _timings(call: Call, queue_seconds: float, compute_seconds: float) -> pb.Timings:
    return pb.Timings(
        queue_seconds=queue_seconds,
        compute_seconds=compute_seconds,
        total_seconds=time.perf_counter() - call.started,
    )
