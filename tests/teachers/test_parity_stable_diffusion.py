"""EstimateGradient over gRPC against the formula in plain diffusers: text-conditional latents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from carv_client import Branch, TeacherClient
from tests.teachers.reference import (
    WEIGHTINGS,
    Draws,
    ReferenceTeacher,
    Term,
    assert_parity,
    draws_of,
    gradient,
)

SEED = 0xC0FFEE_0123456789
TEACHERS = ("sd-epsilon", "sd-v", "sd-sample", "sd-flow")
PROMPT, NEGATIVE = "a red cube", "torus, side view"
EVENT_SHAPE = (4, 8, 8)

Reference = Callable[[str], ReferenceTeacher]


def latents(renders: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(renders, *EVENT_SHAPE)).astype(np.float32)


@pytest.mark.parametrize("guidance", ["standard", "text_anchored"])
@pytest.mark.parametrize("name", TEACHERS)
def test_guidance(client: TeacherClient, reference: Reference, name: str, guidance: str) -> None:
    teacher, x, scale = reference(name), latents(2), 7.5
    estimate = client.estimate_gradient(
        x,
        client.create_conditioning(PROMPT, teacher=name),
        draws=4,
        guidance_scale=scale,
        guidance=guidance,  # pyright: ignore[reportArgumentType]
        seed=SEED,
        return_draws=True,
    )
    anchored = guidance == "text_anchored"
    expected = gradient(
        teacher,
        x,
        [
            Term(1 + scale if anchored else scale, [PROMPT] * 2),
            Term(-scale if anchored else 1 - scale, [""] * 2),
        ],
        draws_of(estimate),
        seed=SEED,
        weighting=1 - teacher.alpha_bar,
    )
    assert_parity(estimate.gradient, expected)


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v"])
def test_weightings(client: TeacherClient, reference: Reference, name: str, weighting: str) -> None:
    teacher, x = reference(name), latents(1)
    estimate = client.estimate_gradient(
        x,
        client.create_conditioning(PROMPT, teacher=name),
        draws=4,
        guidance_scale=1.0,
        weighting=weighting,  # pyright: ignore[reportArgumentType]
        sampler="stratified",
        proposal="prior",
        coupling="iid",
        seed=SEED,
        return_draws=True,
    )
    draws = draws_of(estimate)
    assert np.array_equal(draws.importance_weights, np.ones((1, 4)))
    with np.errstate(divide="ignore"):
        values = WEIGHTINGS[weighting](teacher.alpha_bar)
    expected = gradient(teacher, x, [Term(1.0, [PROMPT])], draws, seed=SEED, weighting=values)
    assert_parity(estimate.gradient, expected)


def test_importance_weights(client: TeacherClient, reference: Reference) -> None:
    """Under the proposal q proportional to p w, p/q is the mean of w over the prior, over w(t)."""
    estimate = client.estimate_gradient(
        latents(3),
        client.create_conditioning(PROMPT, teacher="sd-epsilon"),
        draws=5,
        timestep_range=(0.1, 0.7),
        proposal="weight",
        seed=SEED,
        return_draws=True,
    )
    draws = draws_of(estimate)
    w = 1 - reference("sd-epsilon").alpha_bar
    assert draws.timesteps.min() >= 100 and draws.timesteps.max() <= 700
    expected = w[100:701].mean() / w[draws.timesteps]
    np.testing.assert_allclose(draws.importance_weights, expected, rtol=1e-6)


def test_negative_prompt_and_weight_table(client: TeacherClient, reference: Reference) -> None:
    teacher, x = reference("sd-epsilon"), latents(2, 1)
    table = np.random.default_rng(5).uniform(0.5, 2.0, 1000)
    estimate = client.estimate_gradient(
        x,
        client.create_conditioning(PROMPT, teacher="sd-epsilon"),
        negative_prompt=NEGATIVE,
        guidance_scale=3.0,
        weighting=table,
        draws=3,
        seed=SEED,
        return_draws=True,
    )
    terms = [Term(3.0, [PROMPT] * 2), Term(-2.0, [NEGATIVE] * 2)]
    expected = gradient(teacher, x, terms, draws_of(estimate), seed=SEED, weighting=table)
    assert_parity(estimate.gradient, expected)


def test_prompt_per_render(client: TeacherClient, reference: Reference) -> None:
    teacher, x = reference("sd-v"), latents(3, 2)
    prompts = ["a red cube, front view", "a red cube, side view", "cube"]
    estimate = client.estimate_gradient(
        x,
        client.create_conditioning(prompts, teacher="sd-v"),
        guidance_scale=5.0,
        draws=2,
        seed=SEED,
        return_draws=True,
    )
    expected = gradient(
        teacher,
        x,
        [Term(5.0, prompts), Term(-4.0, [""] * 3)],
        draws_of(estimate),
        seed=SEED,
        weighting=1 - teacher.alpha_bar,
    )
    assert_parity(estimate.gradient, expected)


def test_delta_denoising(client: TeacherClient, reference: Reference) -> None:
    """eps_hat(z_t, c) - eps_hat(z'_t, c') on the same (t, eps): Hertz et al. 2023, DDS."""
    teacher, x, source = reference("sd-epsilon"), latents(2, 3), latents(2, 4)
    edit, origin = client.create_conditioning([PROMPT, "cube"], teacher="sd-epsilon")
    estimate = client.estimate_gradient(
        x,
        branches=[Branch(edit, 1.0), Branch(origin, -1.0, use_reference_latents=True)],
        noise_coefficient=0.0,
        reference_latents=source,
        weighting="uniform",
        timestep_range=(0.05, 0.95),
        draws=4,
        seed=SEED,
        return_draws=True,
    )
    expected = gradient(
        teacher,
        x,
        [Term(1.0, [PROMPT] * 2), Term(-1.0, ["cube"] * 2, use_reference=True)],
        draws_of(estimate),
        seed=SEED,
        weighting=np.ones(1000),
        noise_coefficient=0.0,
        reference_latents=source,
    )
    assert_parity(estimate.gradient, expected)


def test_three_branches(client: TeacherClient, reference: Reference) -> None:
    """Classifier score distillation with a negative prompt annealed in t: Yu et al. 2023, CSD."""
    teacher, x = reference("sd-v"), latents(2, 5)
    annealed, noise = np.linspace(-3.0, 0.0, 1000), np.linspace(0.5, -1.0, 1000)
    positive, negative, null = client.create_conditioning([PROMPT, NEGATIVE, ""], teacher="sd-v")
    estimate = client.estimate_gradient(
        x,
        branches=[Branch(positive, 4.0), Branch(negative, annealed), Branch(null, -1.0)],
        noise_coefficient=noise,
        draws=4,
        seed=SEED,
        return_draws=True,
    )
    expected = gradient(
        teacher,
        x,
        [Term(4.0, [PROMPT] * 2), Term(annealed, [NEGATIVE] * 2), Term(-1.0, [""] * 2)],
        draws_of(estimate),
        seed=SEED,
        weighting=1 - teacher.alpha_bar,
        noise_coefficient=noise,
    )
    assert_parity(estimate.gradient, expected)


@pytest.mark.parametrize("name", TEACHERS)
def test_explicit_draws_at_the_ends(client: TeacherClient, reference: Reference, name: str) -> None:
    """First and last timestep; the last of ``sd-v`` has no signal left (zero terminal SNR)."""
    teacher, x = reference(name), latents(2, 6)
    draws = Draws(
        timesteps=np.array([[0, 999, 1], [999, 500, 0]]),
        noise_indices=np.array([[0, 1, 7], [3, 3, 2**32 - 1]]),
        signs=np.array([[1.0, -1.0, 1.0], [1.0, -1.0, 1.0]], dtype=np.float32),
        importance_weights=np.array([[0.5, 1.5, 1.0], [2.0, 0.25, 1.0]], dtype=np.float32),
    )
    estimate = client.estimate_gradient(
        x,
        client.create_conditioning(PROMPT, teacher=name),
        guidance_scale=2.0,
        seed=SEED,
        **vars(draws),
    )
    terms = [Term(2.0, [PROMPT] * 2), Term(-1.0, [""] * 2)]
    weighting = 1 - teacher.alpha_bar
    expected = gradient(teacher, x, terms, draws, seed=SEED, weighting=weighting)
    assert_parity(estimate.gradient, expected)


@pytest.mark.parametrize("name", TEACHERS)
def test_predict_noise(client: TeacherClient, reference: Reference, name: str) -> None:
    """The raw eps_hat of every draw, and the same at z_t made by the client."""
    teacher, x, steps = reference(name), latents(2, 7), np.array([[30, 640], [999, 0]])
    conditioning = client.create_conditioning(PROMPT, teacher=name)
    predicted = client.predict_noise(x, conditioning, timesteps=steps, seed=SEED)
    noise = [[teacher.noise(SEED, r, k, EVENT_SHAPE) for k in range(2)] for r in range(2)]
    expected = np.array(
        [
            [teacher.predict_noise(x[r], noise[r][k], steps[r, k], PROMPT) for k in range(2)]
            for r in range(2)
        ]
    )
    assert_parity(predicted.noise.reshape(4, -1), expected.reshape(4, -1))
    z = np.stack([teacher.noisy(x[r], noise[r][1], steps[r, 1]) for r in range(2)])
    at_z = client.predict_noise(noisy_latents=z, conditioning=conditioning, timesteps=steps[:, 1])
    assert_parity(at_z.noise[:, 0], expected[:, 1])
