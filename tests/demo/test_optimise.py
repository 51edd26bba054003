"""The optimisation loop: when it stops, what it looks at, what it asks the server for, and the
gradient that its field gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from carv_client import Estimate
from carv_server.demo import optimise as module
from carv_server.demo.cameras import View, random_views, ring
from carv_server.demo.compute import ComputeMeter
from carv_server.demo.convention import Convention
from carv_server.demo.field import FieldConfig, VoxelField
from carv_server.demo.optimise import Studio, optimise
from carv_server.demo.scene import render_view
from carv_server.demo.settings import BASELINE, CARV, Method, Settings
from tests.demo.fakes import SECONDS_PER_DRAW, FakeClient, small_settings, small_studio


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream takes no time, so that an iteration costs what the fake server says."""
    stopped = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr(module, "time", stopped)
    monkeypatch.setattr(
        module, "ComputeMeter", lambda budget: ComputeMeter(budget, clock=stopped.perf_counter)
    )


@pytest.mark.usefixtures("still_clock")
@pytest.mark.parametrize("method", [BASELINE, CARV], ids=lambda method: method.name)
@pytest.mark.parametrize("budget", [0.95, 1.1, 2.0])
def test_runs_end_within_half_an_iteration_and_look_at_the_end(
    convention: Convention, method: Method, budget: float
) -> None:
    client, booked = FakeClient(), list[float]()
    settings = small_settings(budget)
    studio = small_studio(convention, client)
    run = optimise(studio, method, 3, settings, ring(2, 20.0, 3.0), booked.append)
    cost = SECONDS_PER_DRAW * method.draws
    assert abs(run.meter.spent - budget) <= cost / 2 + 1e-9
    assert run.meter.iterations == len(client.requests) == len(booked)
    assert sum(booked) == pytest.approx(run.meter.spent)
    # As many looks as planned whatever an iteration costs; the first before, the last after.
    assert len(run.looks) == settings.checkpoints
    assert run.looks[0].compute == 0.0 and run.looks[-1].compute == run.meter.spent
    assert [look.compute for look in run.looks] == sorted(look.compute for look in run.looks)
    final = studio.latents(run.field, ring(2, 20.0, 3.0), settings.samples)
    torch.testing.assert_close(run.looks[-1].latents, final, rtol=0, atol=0)
    if run.meter.iterations > 2:
        assert not torch.equal(run.halfway.grid(), run.field.grid())


@pytest.mark.usefixtures("still_clock")
def test_requests_follow_method_and_schedules(convention: Convention) -> None:
    """K, sampling, seeds, view words and the shrinking range of timesteps."""
    client, settings = FakeClient(), small_settings(1.0)
    optimise(
        small_studio(convention, client), BASELINE, 5, settings, ring(1, 0, 3.0), lambda _: None
    )
    assert {request["draws"] for request in client.requests} == {1}
    assert {request["sampler"] for request in client.requests} == {"iid"}
    assert {request["guidance_scale"] for request in client.requests} == {settings.guidance_scale}
    assert len({request["seed"] for request in client.requests}) == len(client.requests)
    for done, request in enumerate(client.requests):
        expected = settings.timestep_range(SECONDS_PER_DRAW * done)
        assert request["timestep_range"] == pytest.approx(expected)
    views = random_views(np.random.default_rng(5), convention.elevation, convention.distances)
    for request, view in zip(client.requests, views, strict=False):
        expected = convention.view_prompt("a red torus", view.azimuth, view.elevation)
        assert request["conditioning"] == expected


@pytest.mark.usefixtures("still_clock")
def test_a_seed_gives_both_methods_the_same_cameras_and_first_field(convention: Convention) -> None:
    clients = FakeClient(scale=0.0), FakeClient(scale=0.0)
    runs = [
        optimise(
            small_studio(convention, client), method, 1, small_settings(2.0), ring(1, 0, 3.0),
            lambda _: None,
        )
        for client, method in zip(clients, (BASELINE, CARV), strict=True)
    ]  # fmt: skip
    words = [[request["conditioning"] for request in client.requests] for client in clients]
    assert words[0][: len(words[1])] == words[1]
    assert torch.equal(runs[0].looks[0].latents, runs[1].looks[0].latents)


class Recorder:
    """Passes requests on to a client, and keeps them with their answers."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.latents: list[np.ndarray] = []
        self.estimates: list[Estimate] = []

    def estimate_gradient(self, latents: np.ndarray, *given: Any, **options: Any) -> Estimate:
        estimate = self._client.estimate_gradient(latents, *given, **options)
        self.latents.append(latents.copy())
        self.estimates.append(estimate)
        return estimate


@contextmanager
def recorded_steps() -> Iterator[list[tuple[list[Tensor], list[Tensor]]]]:
    """Parameters and their gradients before each optimiser step of the block."""
    steps: list[tuple[list[Tensor], list[Tensor]]] = []

    def keep(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        values = [p for group in optimiser.param_groups for p in group["params"]]
        steps.append(([p.detach().clone() for p in values], [p.grad.clone() for p in values]))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield steps
    finally:
        handle.remove()


@pytest.mark.parametrize("method", [BASELINE, CARV], ids=lambda method: method.name)
def test_the_field_gets_the_estimate_through_encoder_and_renderer(
    studio: Studio, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three iterations against the real server: each parameter gradient is J^T g, J the Jacobian
    of the latents of the same view with respect to the parameters of the moment."""
    iterations = 3
    budget = property(lambda meter: meter.iterations >= iterations)
    monkeypatch.setattr(ComputeMeter, "exhausted", budget)
    recorder = Recorder(studio.client)
    watched = replace(studio, client=cast(Any, recorder))
    settings = Settings(budget=60.0, checkpoints=2, field=FieldConfig(resolutions=(4, 8)))
    seed, held_out = 11, [View(15.0, 30.0, 3.0)]
    with recorded_steps() as steps:
        run = optimise(watched, method, seed, settings, held_out, lambda _: None)
    assert len(steps) == len(recorder.estimates) == run.meter.iterations == iterations

    jitter = torch.Generator().manual_seed(seed)
    views = random_views(
        np.random.default_rng(seed), studio.convention.elevation, studio.convention.distances
    )
    field = VoxelField(settings.field)
    parameters = list(field.parameters())
    for view, (values, gradients), sent, estimate in zip(
        views, steps, recorder.latents, recorder.estimates, strict=False
    ):
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        image = render_view(
            field, view, studio.convention, samples=settings.samples, generator=jitter
        ).image
        latents = studio.encoder(image[None])
        torch.testing.assert_close(latents.detach(), torch.from_numpy(sent), rtol=1e-4, atol=1e-5)
        assert estimate.draws_spent == method.draws and estimate.compute_seconds > 0
        expected = torch.autograd.grad(latents, parameters, torch.from_numpy(estimate.gradient))
        for got, wanted in zip(gradients, expected, strict=True):
            assert float(wanted.norm()) > 0
            error = float((got - wanted).norm() / wanted.norm())
            assert error < 1e-4
    assert run.meter.denoise == pytest.approx(sum(e.compute_seconds for e in recorder.estimates))
