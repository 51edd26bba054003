"""Conversion to noise units: exact algebra in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from carv_server.sampling.prediction import PredictionType, to_noise
from carv_server.sampling.schedule import Schedule, discrete_schedule, flow_schedule
from carv_server.teachers.tables import NoiseConverter

CPU = torch.device("cpu")


def schedules() -> dict[str, Schedule]:
    plain = DDPMScheduler().alphas_cumprod.double().numpy()
    rescaled = DDPMScheduler(rescale_betas_zero_snr=True).alphas_cumprod.double().numpy()
    return {
        "discrete": discrete_schedule(plain),
        "zero-snr": discrete_schedule(rescaled),
        "flow": flow_schedule(1000, 3.0),
    }


def outputs(
    kind: PredictionType, x: torch.Tensor, eps: torch.Tensor, a: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """What a perfect network of each kind says."""
    return {
        PredictionType.EPSILON: eps,
        PredictionType.V: a * eps - s * x,
        PredictionType.SAMPLE: x,
        PredictionType.FLOW: eps - x,
    }[kind]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("discrete", "zero-snr")
        for kind in (PredictionType.EPSILON, PredictionType.V, PredictionType.SAMPLE)
    ]
    + [("flow", kind) for kind in (PredictionType.EPSILON, PredictionType.SAMPLE)]
    + [("flow", PredictionType.FLOW)],
)
def test_a_perfect_network_gives_the_noise(name: str, kind: PredictionType) -> None:
    """At every timestep, the one without any signal (alpha = 0) included."""
    schedule = schedules()[name]
    generator = torch.Generator().manual_seed(3)
    x, eps = torch.randn(2, 1, 3, 4, 4, generator=generator, dtype=torch.float64)
    alpha = torch.from_numpy(schedule.alpha).reshape(-1, 1, 1, 1)
    sigma = torch.from_numpy(schedule.sigma).reshape(-1, 1, 1, 1)
    z = alpha * x + sigma * eps
    noise = to_noise(outputs(kind, x, eps, alpha, sigma), z, alpha, sigma, kind)
    # A clean sample is divided by sigma, as small as 3e-3 on these schedules.
    torch.testing.assert_close(noise, eps.expand_as(noise), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [PredictionType.V, PredictionType.SAMPLE, PredictionType.FLOW])
def test_conversion_is_affine_in_the_network(kind: PredictionType) -> None:
    """The error of eps_hat is the network's error times alpha, alpha / sigma, or alpha."""
    schedule = schedules()["flow" if kind is PredictionType.FLOW else "discrete"]
    alpha, sigma = (torch.tensor(v[[5, 500, 990]]) for v in (schedule.alpha, schedule.sigma))
    z, out, error = torch.randn(
        3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    gain = {
        PredictionType.V: alpha,
        PredictionType.SAMPLE: -alpha / sigma,
        PredictionType.FLOW: alpha,
    }[kind]
    off = to_noise(out + error, z, alpha, sigma, kind) - to_noise(out, z, alpha, sigma, kind)
    torch.testing.assert_close(off, gain * error, rtol=1e-11, atol=1e-11)


def test_velocity_is_that_of_diffusers() -> None:
    scheduler: Any = DDPMScheduler(rescale_betas_zero_snr=True)
    schedule = schedules()["zero-snr"]
    x, eps = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([0, 250, 998, 999])
    z, v = scheduler.add_noise(x, eps, t), scheduler.get_velocity(x, eps, t)
    converter = NoiseConverter(schedule, PredictionType.V, CPU)
    torch.testing.assert_close(converter.to_noise(v, z, t), eps, rtol=1e-5, atol=2e-6)


def test_without_signal_v_says_minus_x_and_noise_is_z() -> None:
    converter = NoiseConverter(schedules()["zero-snr"], PredictionType.V, CPU)
    z, v = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    last = torch.tensor([999, 999])
    assert torch.equal(converter.to_noise(v, z, last), z)


def test_learned_variance_is_dropped_and_half_precision_widened() -> None:
    converter = NoiseConverter(schedules()["discrete"], PredictionType.EPSILON, CPU)
    z, out = torch.zeros(2, 3, 4, 4), torch.ones(2, 6, 4, 4, dtype=torch.bfloat16)
    out[:, 3:] = torch.nan
    noise = converter.to_noise(out, z, torch.tensor([0, 999]))
    assert noise.dtype is torch.float32 and torch.equal(noise, torch.ones_like(z))


def test_network_timesteps() -> None:
    steps = torch.tensor([0, 999])
    discrete = NoiseConverter(schedules()["discrete"], PredictionType.EPSILON, CPU)
    assert discrete.model_timesteps(steps).tolist() == [0.0, 999.0]
    flow = NoiseConverter(schedules()["flow"], PredictionType.FLOW, CPU)
    first = 1000 * 3.0 * 1e-3 / (1 + 2.0 * 1e-3)
    np.testing.assert_allclose(flow.model_timesteps(steps).numpy(), [first, 1000.0], rtol=1e-6)
