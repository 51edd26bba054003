"""The same request gives the same draws, and the same gradient to 1e-5, whatever runs with it
and however it is cut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest

from carv.tensors import decode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_client import Estimate, TeacherClient
from carv_server.scheduler import SchedulerConfig
from tests.server.closed_form import relative_error
from tests.server.teachers import GatedTeacher, running, waiting
from tests.server.wire import create_async, estimate_request, latents, path

TOLERANCE = 1e-5
TABLE = ("timesteps", "noise_indices", "signs", "importance_weights")


def _same_draws(one: Estimate, other: Estimate) -> bool:
    assert one.draws is not None and other.draws is not None
    return all(np.array_equal(getattr(one.draws, f), getattr(other.draws, f)) for f in TABLE)


@pytest.mark.parametrize("sampler", ["iid", "stratified", "global", "nested"])
def test_the_same_seed_gives_the_same_answer_twice(client: TeacherClient, sampler: str) -> None:
    x, conditioning = latents(5, 1), client.create_conditioning(class_id=1)

    def estimate(seed: int) -> Estimate:
        return client.estimate_gradient(
            x,
            conditioning,
            draws=6,
            seed=seed,
            sampler=sampler,  # pyright: ignore[reportArgumentType]
            return_draws=True,
        )

    one, again, other = estimate(42), estimate(42), estimate(43)
    assert _same_draws(one, again)
    assert relative_error(again.gradient, one.gradient) < TOLERANCE
    assert not _same_draws(one, other)
    assert relative_error(other.gradient, one.gradient) > 0.01


def test_the_replys_seed_reproduces_a_request_without_one(client: TeacherClient) -> None:
    x, conditioning = latents(3, 2), client.create_conditioning(class_id=0)
    first = client.estimate_gradient(x, conditioning, return_draws=True)
    second = client.estimate_gradient(x, conditioning, return_draws=True)
    assert first.seed != second.seed
    again = client.estimate_gradient(x, conditioning, seed=first.seed, return_draws=True)
    assert again.seed == first.seed and _same_draws(first, again)
    assert relative_error(again.gradient, first.gradient) < TOLERANCE


@dataclass(frozen=True)
class _Answer:
    gradient: np.ndarray
    variance: np.ndarray
    draws: bytes


def _answer(reply: bytes) -> _Answer:
    response = pb.EstimateGradientResponse.FromString(reply)
    return _Answer(
        decode_tensor(response.gradient),
        decode_tensor(response.diagnostics.noise_variance),
        response.draw_table.SerializeToString(deterministic=True),
    )


async def _serve(
    budget: int, requests: list[tuple[int, int]], coupling: int = 0
) -> tuple[list[_Answer], list[int]]:
    """Answers to requests (R, K) that wait together, and the rows of each forward."""
    teacher = GatedTeacher()
    config = SchedulerConfig(evaluation_budget=budget)
    async with running(teacher, scheduler=config) as (server, channel):
        handles = [await create_async(channel, c) for c in (0, 2)]
        estimate = channel.unary_unary(path("EstimateGradient"))
        first = estimate(estimate_request(handles[:1], renders=1, draws=1).SerializeToString())
        assert await asyncio.to_thread(teacher.entered.wait, 10)
        calls = []
        for renders, draws in requests:
            request = estimate_request(handles, renders, draws, seed=9)
            request.return_draws = True
            request.sampling.noise_coupling = coupling  # pyright: ignore[reportAttributeAccessIssue]
            calls.append(estimate(request.SerializeToString()))
        await waiting(server, len(requests))
        teacher.gate.set()
        await first
        answers = [_answer(await call) for call in calls]
    return answers, [len(forward) for forward in teacher.forwards[1:]]


def test_alone_or_in_a_mixed_microbatch() -> None:
    """Broken by noise that is counted by rows of the microbatch in place of renders of the
    request."""
    requests = [(1, 3), (4, 8), (2, 5), (7, 4)]
    mixed, forwards = asyncio.run(_serve(1024, requests))
    assert forwards == [sum(2 * r * k for r, k in requests)], "they must share one forward"
    for request, answer in zip(requests, mixed, strict=True):
        (alone,), _ = asyncio.run(_serve(1024, [request]))
        assert answer.draws == alone.draws
        assert relative_error(answer.gradient, alone.gradient) < TOLERANCE
        assert relative_error(answer.variance, alone.variance) < TOLERANCE


@pytest.mark.parametrize("coupling", [1, 2])
def test_cut_into_tiny_microbatches(coupling: int) -> None:
    """5 renders of 9 draws by 2 branches, in groups of 2 or (antithetic) 4 and 2 evaluations."""
    (whole,), forwards = asyncio.run(_serve(1024, [(5, 9)], coupling))
    assert forwards == [90]
    for budget in (1, 7, 16):
        (cut,), forwards = asyncio.run(_serve(budget, [(5, 9)], coupling))
        assert sum(forwards) == 90 and len(forwards) >= 90 // max(budget, 4)
        assert cut.draws == whole.draws
        assert relative_error(cut.gradient, whole.gradient) < TOLERANCE
        assert relative_error(cut.variance, whole.variance) < TOLERANCE
