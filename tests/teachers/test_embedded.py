"""The teacher that the package ships: trained weights behind the same code as any other folder."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from carv_server.teachers.protocol import Prompts, SourceError, Teacher
from carv_server.teachers.registry import EMBEDDED
from tests.teachers.loading import load

RENDERER = Path(__file__).parents[2] / "examples" / "embedded_teacher" / "dataset.py"
SEED = 424_242  # the training set is seed 1, the held-out set of the model card 900,001
RENDERS = 40


@pytest.fixture(scope="module")
def dataset() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("embedded_teacher_dataset", RENDERER)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load(EMBEDDED.folder)


def test_description(teacher: Teacher, dataset: Any) -> None:
    description = teacher.description
    assert description.family == "stable-diffusion" and description.event_shape == (4, 8, 8)
    assert len(description.schedule) == 1000 and description.description
    vae = json.loads((EMBEDDED.folder / "vae" / "config.json").read_text())
    assert description.scaling_factor == vae["scaling_factor"] != 1.0
    assert set(description.conditioning.vocabulary) == set(dataset.VOCABULARY)


def test_vocabulary_is_closed_and_each_word_counts(teacher: Teacher, dataset: Any) -> None:
    with pytest.raises(SourceError, match=r"does not know 'teapot'; it knows: .*torus"):
        teacher.encode(Prompts(("a red teapot",)))
    words = [*dataset.SHAPES, *dataset.COLOURS, *dataset.VIEWS]
    rows = [row["encoder_hidden_states"] for row in teacher.encode(Prompts(tuple(words)))]
    distances = torch.cdist(torch.stack(rows).flatten(1), torch.stack(rows).flatten(1))
    assert (distances + torch.eye(len(words)) * 1e6).min() > 0.1


def test_plain_diffusers_loads_it() -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(EMBEDDED.folder).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a red cube",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert image.shape == (1, 64, 64, 3) and np.isfinite(image).all()


def test_it_knows_what_it_sees(teacher: Teacher, dataset: Any) -> None:
    """Zero-shot classification, the prompt of least denoising error (Li et al. 2023): first the
    shape, in middling noise, then its colour, in strong noise that leaves little else."""
    spec = dataset.sample_specs(RENDERS, SEED)
    latents = _latents(dataset.render(spec))
    generator = torch.Generator().manual_seed(0)
    shapes = _states(teacher, [dataset.prompt(shape) for shape in dataset.SHAPES])
    coloured = [
        _states(teacher, [dataset.prompt(shape, colour) for colour in dataset.COLOURS])
        for shape in dataset.SHAPES
    ]
    right_shapes = right_colours = 0
    for x, shape, colour in zip(latents, spec.shape, spec.colour, strict=True):
        found = _classify(teacher, x, shapes, 3, (200, 800), generator)
        right_shapes += found == shape
        right_colours += colour == _classify(teacher, x, coloured[found], 4, (600, 990), generator)
    assert right_shapes >= 0.9 * RENDERS, f"shapes: {right_shapes} of {RENDERS}"
    assert right_colours >= 0.9 * RENDERS, f"colours: {right_colours} of {RENDERS}"


@torch.no_grad()
def _latents(images: np.ndarray) -> torch.Tensor:
    vae: Any = AutoencoderKL.from_pretrained(EMBEDDED.folder / "vae").float()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return vae.encode(x).latent_dist.mean * vae.config["scaling_factor"]


def _states(teacher: Teacher, prompts: list[str]) -> torch.Tensor:
    rows = teacher.encode(Prompts(tuple(prompts)))
    return torch.stack([row["encoder_hidden_states"] for row in rows])


def _classify(
    teacher: Teacher,
    x: torch.Tensor,
    states: torch.Tensor,
    draws: int,
    steps: tuple[int, int],
    generator: torch.Generator,
) -> int:
    """The prompt of least error over draws of (t, eps) that all prompts share."""
    schedule, prompts = teacher.description.schedule, len(states)
    points = (torch.arange(draws) + torch.rand(draws, generator=generator)) / draws
    t = (steps[0] + points * (steps[1] - steps[0])).long()
    noise = torch.randn(draws, *x.shape, generator=generator)
    alpha, sigma = (
        torch.tensor(values[t.numpy()], dtype=torch.float32).reshape(-1, 1, 1, 1)
        for values in (schedule.alpha, schedule.sigma)
    )
    predicted = teacher.predict_noise(
        (alpha * x + sigma * noise).repeat_interleave(prompts, 0),
        t.repeat_interleave(prompts),
        {"encoder_hidden_states": states.repeat(draws, 1, 1)},
    )
    error = (predicted - noise.repeat_interleave(prompts, 0)).square().flatten(1).sum(1)
    return int(error.reshape(draws, prompts).sum(0).argmin())
