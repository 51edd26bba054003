"""The client against a real server with the Gaussian-mixture oracle."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from carv_client import (
    AsyncTeacherClient,
    Branch,
    Conditioning,
    InvalidRequestError,
    NotFoundError,
    TeacherClient,
    draw_noise,
)
from tests.support.oracle import EVENT_SHAPE, TIMESTEPS, oracle_mixture, oracle_schedule

MIXTURE, SCHEDULE = oracle_mixture(), oracle_schedule()
RENDERS = 2
LATENTS = np.random.default_rng(7).normal(size=(RENDERS, *EVENT_SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def client(analytic_server: str) -> Iterator[TeacherClient]:
    with TeacherClient(analytic_server) as client:
        yield client


@pytest.fixture(scope="module")
def component(client: TeacherClient) -> Conditioning:
    return client.create_conditioning(class_id=1)


def component_noise(z: np.ndarray, timestep: int, component: int) -> np.ndarray:
    """ε̂(z, t, m) = σ(z − αμ)/(α²s² + σ²)."""
    alpha, sigma = SCHEDULE.alpha[timestep], SCHEDULE.sigma[timestep]
    variance = (alpha * MIXTURE.scales[component]) ** 2 + sigma**2
    return sigma * (z - alpha * MIXTURE.means[component]) / variance


def test_the_teacher_is_described(client: TeacherClient) -> None:
    teacher = client.get_teacher("mixture")
    assert (teacher.id, teacher.family, teacher.event_shape) == ("mixture", "analytic", EVENT_SHAPE)
    assert (teacher.timesteps, teacher.schedule_kind) == (TIMESTEPS, "discrete")
    # The folder holds alpha squared; sigma is then a cancelling difference.
    np.testing.assert_allclose(teacher.alpha, SCHEDULE.alpha, rtol=1e-12)
    np.testing.assert_allclose(teacher.sigma, SCHEDULE.sigma, rtol=1e-12)
    assert (teacher.classes, teacher.accepts_prompts) == (3, False)
    assert [part.name for part in teacher.conditioning_tensors] == ["class_label"]
    assert client.get_teacher("mixture") is teacher, "asked once"
    assert client.get_teacher("mixture", refresh=True) is not teacher
    (listed,) = client.list_teachers()
    assert (listed.id, listed.digest, listed.timesteps) == ("mixture", teacher.digest, 0)


@pytest.mark.parametrize("sampler", ["iid", "stratified", "global", "nested"])
@pytest.mark.parametrize("proposal", ["prior", "weight"])
def test_estimates_average_to_the_closed_form(
    client: TeacherClient, component: Conditioning, sampler: str, proposal: str
) -> None:
    """Component m alone, d = −1, w = 1 − ᾱ, t uniform on [20, 980]: E over ε is linear in x.

    64 seeds of K = 4; each of the 64 coordinates of the mean as a z-score with the spread
    measured over seeds (Student t, 63 degrees). P(|t| > 4.9) = 7e-6, so the largest of 64
    crosses 4.9 with probability 4e-4 for each of the 8 cases; seeds are fixed."""
    at = np.arange(20, 981)
    weight = (SCHEDULE.sigma**2)[at] / at.size
    exact = np.tensordot(
        MIXTURE.expected_noise(LATENTS, 1, SCHEDULE)[:, at], weight, axes=([1], [0])
    )
    samples = np.stack(
        [
            client.estimate_gradient(
                LATENTS,
                component,
                guidance_scale=1.0,
                draws=4,
                seed=seed,
                sampler=sampler,  # type: ignore[arg-type]
                proposal=proposal,  # type: ignore[arg-type]
            ).gradient
            for seed in range(64)
        ]
    ).astype(np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.abs((samples.mean(axis=0) - exact) / error).max() < 4.9


def test_an_estimate_is_the_formula_at_its_own_draws(
    client: TeacherClient, component: Conditioning
) -> None:
    """g = (1/K) Σ (p/q)·w·(2·ε̂_1 − ε), with z_t made here from ``draw_noise``."""
    branches = [Branch(component, 2.0)]
    estimate = client.estimate_gradient(
        LATENTS, branches=branches, draws=5, coupling="antithetic", return_draws=True
    )
    table = estimate.draws
    assert table is not None
    expected = np.zeros(LATENTS.shape)
    for r in range(RENDERS):
        for k in range(5):
            t = table.timesteps[r, k]
            index = int(table.noise_indices[r, k])
            noise = table.signs[r, k] * draw_noise(estimate.seed, r, index, EVENT_SHAPE)
            z = SCHEDULE.alpha[t] * LATENTS[r] + SCHEDULE.sigma[t] * noise
            value = 2.0 * component_noise(z, t, 1) - noise
            expected[r] += table.importance_weights[r, k] * SCHEDULE.sigma[t] ** 2 * value / 5
    np.testing.assert_allclose(estimate.gradient, expected, rtol=1e-4, atol=1e-5)
    assert (estimate.draws_spent, estimate.evaluations_spent) == (10, 10)
    replayed = client.estimate_gradient(
        LATENTS, branches=branches, seed=estimate.seed, **table.arguments
    )
    np.testing.assert_allclose(replayed.gradient, estimate.gradient, rtol=1e-5, atol=1e-6)
    assert (replayed.sampler, replayed.proposal, replayed.coupling) == (None, None, None)


def test_the_same_seed_gives_the_same_estimate_and_the_defaults_are_told(
    client: TeacherClient, component: Conditioning
) -> None:
    first = client.estimate_gradient(LATENTS, component)
    again = client.estimate_gradient(LATENTS, component, seed=first.seed)
    np.testing.assert_allclose(again.gradient, first.gradient, rtol=1e-5, atol=1e-6)
    assert first.sampler in {"iid", "stratified", "global", "nested"}
    assert first.proposal in {"prior", "adaptive"}
    assert first.coupling in {"iid", "antithetic"}
    assert first.gradient.flags.writeable
    assert first.effective_sample_size.shape == (RENDERS,)
    assert (first.effective_sample_size <= 8 * (1 + 1e-6)).all()
    other = client.estimate_gradient(LATENTS, component, seed=first.seed + 1)
    assert not np.allclose(other.gradient, first.gradient)


def test_noise_variance_is_there_from_two_groups_on(
    client: TeacherClient, component: Conditioning
) -> None:
    one = client.estimate_gradient(LATENTS, component, draws=1)
    assert (one.noise_variance, one.variance_estimator) == (None, "unavailable")
    iid = client.estimate_gradient(
        LATENTS, component, draws=2, sampler="iid", proposal="prior", coupling="iid"
    )
    assert iid.variance_estimator == "unbiased"
    assert iid.noise_variance is not None
    assert (iid.noise_variance > 0).all()


def test_standard_and_text_anchored_scales_differ_by_one(
    client: TeacherClient, component: Conditioning
) -> None:
    standard = client.estimate_gradient(LATENTS, component, guidance_scale=7.5, seed=1)
    anchored = client.estimate_gradient(
        LATENTS, component, guidance_scale=6.5, guidance="text_anchored", seed=1
    )
    np.testing.assert_allclose(anchored.gradient, standard.gradient, rtol=1e-4, atol=1e-4)
    assert standard.evaluations_spent == 2 * standard.draws_spent


def test_one_conditioning_for_each_render(client: TeacherClient) -> None:
    pair = client.create_conditioning(class_id=[0, 2])
    together = client.estimate_gradient(LATENTS, pair, seed=3, sampler="stratified")
    for r, conditioning in enumerate(pair):
        alone = client.estimate_gradient(LATENTS, conditioning, seed=3, sampler="stratified")
        np.testing.assert_allclose(together.gradient[r], alone.gradient[r], rtol=1e-5, atol=1e-5)


def test_reference_latents_share_the_draws(client: TeacherClient, component: Conditioning) -> None:
    """ε̂(z) − ε̂(z') of one component is linear: the noise cancels and the answer is exact at any
    draws, Σ w·σα/(α²s² + σ²)·(x − x') over the timesteps drawn."""
    reference = LATENTS + np.float32(0.5)
    steps = [100, 500, 900]
    estimate = client.estimate_gradient(
        LATENTS,
        branches=[Branch(component, 1.0), Branch(component, -1.0, use_reference_latents=True)],
        noise_coefficient=0.0,
        reference_latents=reference,
        weighting="uniform",
        timesteps=steps,
    )
    alpha, sigma = SCHEDULE.alpha[steps], SCHEDULE.sigma[steps]
    gain = np.mean(sigma * alpha / ((alpha * MIXTURE.scales[1]) ** 2 + sigma**2))
    np.testing.assert_allclose(estimate.gradient, gain * (LATENTS - reference), rtol=2e-4)


def test_predict_noise_is_the_teachers_own(client: TeacherClient, component: Conditioning) -> None:
    steps = [10, 400, 990]
    prediction = client.predict_noise(LATENTS, component, timesteps=steps, signs=[1, -1, 1], seed=8)
    assert prediction.noise.shape == (RENDERS, 3, *EVENT_SHAPE)
    assert (prediction.draws_spent, prediction.evaluations_spent) == (RENDERS * 3, RENDERS * 3)
    noisy = np.empty_like(prediction.noise)
    for r in range(RENDERS):
        for k, (t, sign) in enumerate(zip(steps, [1, -1, 1], strict=True)):
            noise = sign * draw_noise(8, r, k, EVENT_SHAPE)
            noisy[r, k] = SCHEDULE.alpha[t] * LATENTS[r] + SCHEDULE.sigma[t] * noise
            expected = component_noise(noisy[r, k], t, 1)
            np.testing.assert_allclose(prediction.noise[r, k], expected, rtol=1e-4, atol=1e-5)
    direct = client.predict_noise(
        noisy_latents=noisy[:, 1], conditioning=component, timesteps=[400, 400]
    )
    np.testing.assert_allclose(direct.noise[:, 0], prediction.noise[:, 1], rtol=1e-4, atol=1e-5)
    unconditional = client.predict_noise(LATENTS, timesteps=[990], seed=8)
    assert unconditional.noise.shape == (RENDERS, 1, *EVENT_SHAPE)


def test_tensors_and_class_ids_are_the_same_conditioning(
    client: TeacherClient, component: Conditioning
) -> None:
    raw = client.create_conditioning(tensors={"class_label": np.int64(1)})
    a = client.estimate_gradient(LATENTS, component, seed=0)
    b = client.estimate_gradient(LATENTS, raw, seed=0)
    np.testing.assert_allclose(a.gradient, b.gradient, rtol=1e-5, atol=1e-6)


def test_a_handle_unknown_to_the_server_is_replaced(
    client: TeacherClient, component: Conditioning
) -> None:
    stale = dataclasses.replace(component, handle="class-0000")
    a = client.estimate_gradient(LATENTS, component, seed=0)
    b = client.estimate_gradient(LATENTS, stale, seed=0)
    np.testing.assert_allclose(a.gradient, b.gradient, rtol=1e-5, atol=1e-6)


def test_every_violation_comes_back_at_once(client: TeacherClient, component: Conditioning) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.estimate_gradient(
            LATENTS[:, :1], component, draws=-1, timestep_range=(0.9, 0.1), weighting=[1.0]
        )
    fields = " ".join(violation.field for violation in caught.value.violations)
    for part in ("latents", "sampling.draws", "objective.prior", "objective.weighting"):
        assert part in fields
    with pytest.raises(NotFoundError, match="nobody") as missing:
        client.get_teacher("nobody")
    assert missing.value.reason == "TEACHER_NOT_FOUND"
    with pytest.raises(InvalidRequestError, match="float"):
        client.estimate_gradient(np.zeros(LATENTS.shape, np.int64), component)


def test_the_async_client_answers_alike(
    analytic_server: str, client: TeacherClient, component: Conditioning
) -> None:
    async def main() -> list[np.ndarray]:
        async with AsyncTeacherClient(analytic_server) as other:
            conditioning = await other.create_conditioning(class_id=1)
            estimates = await asyncio.gather(
                *(other.estimate_gradient(LATENTS, conditioning, seed=s) for s in range(8))
            )
        return [estimate.gradient for estimate in estimates]

    for seed, gradient in enumerate(asyncio.run(main())):
        expected = client.estimate_gradient(LATENTS, component, seed=seed).gradient
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_a_negative_prompt_needs_a_conditioning(client: TeacherClient) -> None:
    with pytest.raises(InvalidRequestError, match="negative_prompt"):
        client.estimate_gradient(LATENTS, None, negative_prompt="a blue cube")
