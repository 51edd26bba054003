"""The oracle teacher against its own definition: scores by autograd, averages by quadrature."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carv_server.sampling.schedule import Schedule, flow_schedule
from carv_server.teachers.analytic import AnalyticTeacher, GaussianMixture, load_analytic
from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.protocol import Classes, Prompts, RawTensors, SourceError, Unconditional
from tests.support.oracle import EVENT_SHAPE, oracle_mixture, oracle_schedule, write_oracle_folder
from tests.teachers.loading import load

SCHEDULES = {"discrete": oracle_schedule(), "flow": flow_schedule(1000, 3.0)}
TIMESTEPS = [3, 200, 600, 990]


def log_density(
    mixture: GaussianMixture, schedule: Schedule, z: torch.Tensor, t: int, labels: list[int]
) -> torch.Tensor:
    """log p_t(z) of the given components, each under its weight: float64, by its definition."""
    alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
    terms = []
    for m in labels:
        mean = alpha * torch.from_numpy(mixture.means[m])
        variance = (alpha * float(mixture.scales[m])) ** 2 + sigma**2
        square = (z - mean).square().sum(dim=(1, 2, 3)) / variance
        normaliser = math.prod(EVENT_SHAPE) * math.log(2 * math.pi * variance)
        terms.append(math.log(mixture.weights[m]) - 0.5 * (square + normaliser))
    return torch.logsumexp(torch.stack(terms), dim=0)


@pytest.mark.parametrize("label", [0, 1, 2, 3], ids=["0", "1", "2", "unconditional"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_is_minus_sigma_times_the_score(name: str, label: int) -> None:
    mixture, schedule = oracle_mixture(), SCHEDULES[name]
    teacher = AnalyticTeacher(mixture, schedule)
    x = np.random.default_rng(label).normal(size=(6, *EVENT_SHAPE))
    # Between components, where the posterior is not one-hot.
    x[3:] = mixture.means.mean(axis=0) + 0.3 * x[3:]
    for t in TIMESTEPS:
        z = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        labels = [0, 1, 2] if label == 3 else [label]
        (score,) = torch.autograd.grad(log_density(mixture, schedule, z, t, labels).sum(), z)
        noise = teacher.predict_noise(
            z.detach().float(),
            torch.full((6,), t),
            {"class_label": torch.full((6,), label)},
        )
        torch.testing.assert_close(
            noise.double(), -float(schedule.sigma[t]) * score, rtol=3e-4, atol=3e-5
        )


@pytest.mark.parametrize("name", SCHEDULES)
def test_expected_noise_is_the_gauss_hermite_average(name: str) -> None:
    """Each element of eps_hat given m depends on its own element of eps alone, so that a
    quadrature over one normal per element is exact."""
    mixture, schedule = oracle_mixture(), SCHEDULES[name]
    teacher = AnalyticTeacher(mixture, schedule)
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    weights = weights / weights.sum()
    x = np.random.default_rng(0).normal(size=(2, *EVENT_SHAPE))
    for component in range(3):
        expected = mixture.expected_noise(x, component, schedule)
        assert expected.shape == (2, 1000, *EVENT_SHAPE)
        for t in TIMESTEPS:
            average = np.zeros((2, *EVENT_SHAPE))
            for node, weight in zip(nodes, weights, strict=True):
                z = schedule.alpha[t] * x + schedule.sigma[t] * node
                average += weight * (
                    teacher.predict_noise(
                        torch.tensor(z, dtype=torch.float32),
                        torch.full((2,), t),
                        {"class_label": torch.full((2,), component)},
                    )
                    .double()
                    .numpy()
                )
            np.testing.assert_allclose(average, expected[:, t], rtol=1e-4, atol=1e-5)


def test_expected_noise_is_the_monte_carlo_average() -> None:
    mixture, schedule, t, n = oracle_mixture(), oracle_schedule(), 500, 20_000
    teacher = AnalyticTeacher(mixture, schedule)
    x = np.random.default_rng(1).normal(size=(1, *EVENT_SHAPE))
    eps = torch.randn(n, *EVENT_SHAPE, generator=torch.Generator().manual_seed(2))
    z = float(schedule.alpha[t]) * torch.tensor(x).float() + float(schedule.sigma[t]) * eps
    noise = teacher.predict_noise(z, torch.full((n,), t), {"class_label": torch.full((n,), 1)})
    error = noise.double().mean(dim=0).numpy() - mixture.expected_noise(x, 1, schedule)[0, t]
    standard_error = noise.double().std(dim=0).numpy() / math.sqrt(n)
    # 32 elements: a false alarm once in 16,000 seeds.
    assert np.abs(error / standard_error).max() < 4.9


def test_sources() -> None:
    teacher = AnalyticTeacher(oracle_mixture(), oracle_schedule())
    labels = [int(row["class_label"]) for row in teacher.encode(Classes((2, 0)))]
    assert labels == [2, 0]
    assert int(teacher.encode(Unconditional())[0]["class_label"]) == 3
    assert int(teacher.encode(RawTensors({"class_label": torch.tensor(3)}))[0]["class_label"]) == 3
    with pytest.raises(SourceError, match=r"3 is not in 0 \.\. 2"):
        teacher.encode(Classes((0, 3)))
    with pytest.raises(SourceError, match=r"4 is not in 0 \.\. 3"):
        teacher.encode(RawTensors({"class_label": torch.tensor(4)}))
    with pytest.raises(SourceError, match="class ids, not prompts"):
        teacher.encode(Prompts(("a red cube",)))


def test_folder_and_object_are_the_same_teacher(tmp_path: Path) -> None:
    loaded = load_analytic(write_oracle_folder(tmp_path), torch.device("cpu")).description
    made = AnalyticTeacher(oracle_mixture(), oracle_schedule()).description
    assert loaded.event_shape == made.event_shape and loaded.conditioning == made.conditioning
    np.testing.assert_allclose(loaded.schedule.alpha, made.schedule.alpha, rtol=1e-12)


GOOD: dict[str, Any] = {
    "weights": [3, 1],
    "means": [[[0.0]], [[1.0]]],
    "scales": [0.5, 0.5],
    "schedule": {"alphas_cumprod": [0.9, 0.1]},
}


def test_weights_are_normalised_and_flow_is_read(tmp_path: Path) -> None:
    (tmp_path / "mixture.json").write_text(
        json.dumps({**GOOD, "schedule": {"flow_timesteps": 10, "shift": 3.0}})
    )
    teacher = load_analytic(tmp_path, torch.device("cpu"))
    np.testing.assert_allclose(teacher.description.schedule.sigma, flow_schedule(10, 3.0).sigma)
    far = torch.full((1, 1, 1), 0.5)  # equally near to both: the posterior is the weights
    noise = teacher.predict_noise(far, torch.tensor([9]), {"class_label": torch.tensor([2])})
    torch.testing.assert_close(noise, far)  # alpha = 0 and sigma = 1: eps_hat = z


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1, 2, 3]}, "must agree in length"),
        ({"weights": [[3], [1]]}, "must agree in length"),
        ({"means": [0.0, 1.0]}, "must agree in length"),
        ({"weights": [1, 0]}, "above zero"),
        ({"scales": [0.5, -1]}, "above zero"),
        ({"scales": [0.5, math.nan]}, "finite"),
        ({"weights": ["much", 1]}, "could not convert"),
        ({"schedule": [0.9]}, "neither alphas_cumprod nor flow_timesteps"),
        ({"schedule": {}}, "neither alphas_cumprod nor flow_timesteps"),
        ({"schedule": {"alphas_cumprod": [1.0]}}, r"in \[0, 1\)"),
        ({"schedule": {"flow_timesteps": 0}}, "timesteps >= 1"),
    ],
)
def test_mixture_errors(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "mixture.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=message):
        load_analytic(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "must hold an object"), ("{}", "does not state weights, means"), ("{", "is not JSON")],
)
def test_mixture_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mixture.json").write_text(text)
    with pytest.raises(TeacherFolderError, match=rf"mixture\.json.*{message}"):
        load(tmp_path)
