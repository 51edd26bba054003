"""What the server returns is the formula, at the very noise that the contract defines.

Tolerance 1e-5 in relative norm: float32 forwards of some twenty operations per value.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from carv_client import Branch, Conditioning, TeacherClient
from carv_client._types import NamedWeighting
from tests.server.closed_form import UNCONDITIONAL, noise_of, noisy, predicted, relative_error
from tests.server.wire import latents
from tests.support.oracle import TIMESTEPS, oracle_schedule

TOLERANCE = 1e-5
SEED = 0xDEADBEEF_12345678
R, K = 3, 5


def _conditionings(client: TeacherClient) -> list[Conditioning]:
    """Of labels 0, 1, 2 and then the unconditional one."""
    return [
        *client.create_conditioning(class_id=[0, 1, 2]),
        client.create_conditioning(unconditional=True),
    ]


def _draws() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {
        "timesteps": rng.integers(20, 980, size=(R, K)),
        "noise_indices": rng.integers(0, 2**32, size=(R, K)),
        "signs": rng.choice([-1.0, 1.0], size=(R, K)).astype(np.float32),
        "importance_weights": rng.uniform(0.2, 3.0, size=(R, K)).astype(np.float32),
    }


@pytest.mark.parametrize("label", [0, 1, 2, UNCONDITIONAL])
def test_predictions_of_latents_are_the_closed_form(client: TeacherClient, label: int) -> None:
    x, draws = latents(R, 1), _draws()
    del draws["importance_weights"]
    found = client.predict_noise(x, _conditionings(client)[label], seed=SEED, **draws)
    for r in range(R):
        noise = noise_of(SEED, r, draws["noise_indices"][r], draws["signs"][r])
        t = draws["timesteps"][r]
        expected = predicted(noisy(x[r], t, noise), t, label)
        assert relative_error(found.noise[r], expected) < TOLERANCE
    assert (found.seed, found.evaluations_spent) == (SEED, R * K)


def test_predictions_of_noisy_latents_are_the_closed_form(client: TeacherClient) -> None:
    z, timesteps = latents(4, 2), np.array([0, 10, 500, TIMESTEPS - 1])
    labels = [2, UNCONDITIONAL, 0, 1]
    every = _conditionings(client)
    conditionings = [every[label] for label in labels]
    found = client.predict_noise(None, conditionings, noisy_latents=z, timesteps=timesteps, seed=0)
    assert found.noise.shape == (4, 1, *z.shape[1:])
    for r in range(4):
        expected = predicted(z[r : r + 1].astype(np.float64), timesteps[r : r + 1], labels[r])
        assert relative_error(found.noise[r], expected) < TOLERANCE


def _weightings() -> dict[NamedWeighting, np.ndarray]:
    schedule = oracle_schedule()
    abar = schedule.alpha**2
    return {
        "sds": 1 - abar,
        "uniform": np.ones_like(abar),
        "fantasia3d": np.sqrt(abar) * (1 - abar),
        "dreamfusion_sqrt": 1 - np.sqrt(abar),
        "x0": np.sqrt((1 - abar) / abar),
        "score": 1 / np.sqrt(1 - abar),
    }


@pytest.mark.parametrize("weighting", get_args(NamedWeighting))
def test_estimate_is_the_weighted_mean_of_the_predictions(
    client: TeacherClient, weighting: NamedWeighting
) -> None:
    """g_r = (1/K) sum_k v_rk w(t) (7.5 eps_hat(c) - 6.5 eps_hat(u) - eps) from PredictNoise."""
    x, draws = latents(R, 3), _draws()
    every = _conditionings(client)
    plain = {key: draws[key] for key in ("timesteps", "noise_indices", "signs")}
    conditional = client.predict_noise(x, every[1], seed=SEED, **plain).noise
    unconditional = client.predict_noise(x, every[UNCONDITIONAL], seed=SEED, **plain).noise
    estimate = client.estimate_gradient(
        x, every[1], guidance_scale=7.5, weighting=weighting, seed=SEED, **draws
    )
    w = _weightings()[weighting]
    expected = np.zeros(x.shape)
    for r in range(R):
        noise = noise_of(SEED, r, draws["noise_indices"][r], draws["signs"][r])
        guided = 7.5 * conditional[r].astype(float) - 6.5 * unconditional[r].astype(float)
        scale = draws["importance_weights"][r] * w[draws["timesteps"][r]]
        expected[r] = np.einsum("k,kchw->chw", scale / K, guided - noise)
    assert relative_error(estimate.gradient, expected) < TOLERANCE


def test_tables_references_and_conditionings_of_each_render(client: TeacherClient) -> None:
    """Everything at once: a_j(t), d(t) and w(t) by table, one branch at the reference latents,
    and another conditioning for each render."""
    rng = np.random.default_rng(11)
    x, reference, draws = latents(R, 4), latents(R, 5), _draws()
    a, b, d = (rng.normal(size=TIMESTEPS) for _ in range(3))
    w = rng.uniform(0.1, 2.0, size=TIMESTEPS)
    labels = [2, 0, UNCONDITIONAL]
    every = _conditionings(client)
    estimate = client.estimate_gradient(
        x,
        branches=[
            Branch([every[label] for label in labels], a),
            Branch(every[1], b, use_reference_latents=True),
            Branch(every[UNCONDITIONAL], -0.75),
        ],
        noise_coefficient=d,
        weighting=w,
        reference_latents=reference,
        seed=SEED,
        **draws,
    )
    for r in range(R):
        t = draws["timesteps"][r]
        noise = noise_of(SEED, r, draws["noise_indices"][r], draws["signs"][r])
        z, z_reference = noisy(x[r], t, noise), noisy(reference[r], t, noise)

        def each(values: np.ndarray) -> np.ndarray:
            return values.reshape(-1, 1, 1, 1)

        f = each(a[t]) * predicted(z, t, labels[r])
        f += each(b[t]) * predicted(z_reference, t, 1)
        f += -0.75 * predicted(z, t, UNCONDITIONAL) + each(d[t]) * noise
        expected = np.mean(each(draws["importance_weights"][r] * w[t]) * f, axis=0)
        assert relative_error(estimate.gradient[r], expected) < TOLERANCE
    assert estimate.evaluations_spent == R * K * 3
    assert (estimate.sampler, estimate.proposal, estimate.coupling) == (None, None, None)


def test_the_servers_draws_sent_back_give_the_same_estimate(client: TeacherClient) -> None:
    """A draw table is a whole description of what was drawn: R and seed are all it lacks."""
    conditioning = client.create_conditioning(class_id=2)
    x = latents(4, 6)
    drawn = client.estimate_gradient(x, conditioning, draws=7, seed=SEED, return_draws=True)
    assert drawn.draws is not None
    again = client.estimate_gradient(x, conditioning, seed=SEED, **drawn.draws.arguments)
    assert relative_error(again.gradient, drawn.gradient) < TOLERANCE


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_sixteen_bit_latents_are_the_rounded_ones(
    client: TeacherClient, dtype: str, rounding: float
) -> None:
    """The wire rounds x and nothing else: the reply is that of the rounded float32 latents."""
    conditioning = client.create_conditioning(class_id=0)
    x = latents(2, 8)
    if dtype == "float16":
        rounded = x.astype(np.float16).astype(np.float32)
    else:
        bits = x.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    assert 0 < relative_error(rounded, x) < rounding
    short = client.estimate_gradient(x, conditioning, seed=1, wire_dtype=dtype)  # pyright: ignore[reportArgumentType]
    whole = client.estimate_gradient(rounded, conditioning, seed=1)
    assert short.gradient.dtype == np.float32
    assert relative_error(short.gradient, whole.gradient) < 1e-6
