"""Sixteen clients at once, all different: every answer equals its lone answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from carv_client import AsyncTeacherClient, Branch, Conditioning, Estimate, TeacherClient
from tests.server.closed_form import relative_error
from tests.server.wire import latents

CLIENTS, ROUNDS = 16, 3
TOLERANCE = 1e-5


def _options(i: int, conditionings: list[Conditioning]) -> dict[str, Any]:
    """Request i: its own R, K, classes, branches, sampler and objective."""
    renders = 1 + i % 5
    options: dict[str, Any] = {
        "latents": latents(renders, i),
        "draws": 1 + (3 * i) % 11,
        "seed": 1000 + i,
        "sampler": ("iid", "stratified", "global", "nested")[i % 4],
        "coupling": ("iid", "antithetic")[i % 2],
        "weighting": ("sds", "uniform", "x0")[i % 3],
        "return_draws": True,
    }
    if i % 4 == 3:
        per_render = [conditionings[(i + r) % 4] for r in range(renders)]
        terms = [Branch(per_render, 2.0), Branch(conditionings[3], -1.0), Branch(conditionings[0])]
        return options | {"branches": terms, "noise_coefficient": 0.5}
    scale = (1.0, 7.5, 30.0)[i % 3]
    return options | {"conditioning": conditionings[i % 3], "guidance_scale": scale}


def _agree(found: Estimate, lone: Estimate) -> None:
    assert found.draws is not None and lone.draws is not None
    assert np.array_equal(found.draws.timesteps, lone.draws.timesteps)
    assert np.array_equal(found.draws.noise_indices, lone.draws.noise_indices)
    assert relative_error(found.gradient, lone.gradient) < TOLERANCE
    assert (found.noise_variance is None) == (lone.noise_variance is None)
    if found.noise_variance is not None and lone.noise_variance is not None:
        assert relative_error(found.noise_variance, lone.noise_variance) < TOLERANCE


def _lone(client: TeacherClient) -> tuple[list[Conditioning], list[Estimate]]:
    conditionings = client.create_conditioning(class_id=[0, 1, 2])
    conditionings.append(client.create_conditioning(unconditional=True))
    answers = [client.estimate_gradient(**_options(i, conditionings)) for i in range(CLIENTS)]
    return conditionings, answers


def test_blocking_clients_in_threads(analytic_server: str, client: TeacherClient) -> None:
    conditionings, lone = _lone(client)

    def work(i: int) -> list[Estimate]:
        with TeacherClient(analytic_server) as own:
            return [own.estimate_gradient(**_options(i, conditionings)) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(CLIENTS) as threads:
        for i, answers in enumerate(threads.map(work, range(CLIENTS))):
            for answer in answers:
                _agree(answer, lone[i])


def test_asynchronous_clients_on_one_loop(analytic_server: str, client: TeacherClient) -> None:
    conditionings, lone = _lone(client)

    async def work(i: int) -> list[Estimate]:
        async with AsyncTeacherClient(analytic_server) as own:
            calls = [own.estimate_gradient(**_options(i, conditionings)) for _ in range(ROUNDS)]
            return await asyncio.gather(*calls)

    async def scenario() -> list[list[Estimate]]:
        return await asyncio.gather(*(work(i) for i in range(CLIENTS)))

    for i, answers in enumerate(asyncio.run(scenario())):
        for answer in answers:
            _agree(answer, lone[i])
