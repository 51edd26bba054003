"""The classifier score: its arithmetic by hand, and the real teacher on its own training images."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch

from carv_server.demo.cameras import View
from carv_server.demo.convention import Convention
from carv_server.demo.experiment import held_out_views
from carv_server.demo.optimise import Studio
from carv_server.demo.score import Bank, Classifier, posterior
from tests.demo.fakes import EVENT_SHAPE, FakeClient, small_studio


def test_posterior_is_the_softmax_of_minus_the_error() -> None:
    errors = np.array([[0.0, math.log(2), math.log(4)], [5.0, 5.0, 5.0]])
    expected = [[4 / 7, 2 / 7, 1 / 7], [1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(posterior(errors, 1.0), expected, rtol=1e-12)
    np.testing.assert_allclose(posterior(2 * errors, 2.0), expected, rtol=1e-12)
    np.testing.assert_allclose(posterior(errors + 1e5, 1.0), expected, rtol=1e-9)


def test_posterior_of_far_errors_is_certain_and_finite() -> None:
    np.testing.assert_array_equal(posterior(np.array([[9e4, 0.0]]), 1.0), [[0.0, 1.0]])


@pytest.fixture
def views() -> list[View]:
    return [View(0.0, 10.0, 3.0), View(90.0, 70.0, 3.0)]  # a front and an overhead view


def test_scores_by_hand(convention: Convention, views: list[View]) -> None:
    """The fake teacher's prediction is off by a constant o under each prompt: E = |event| o^2."""
    size = math.prod(EVENT_SHAPE)
    client = FakeClient()
    alternatives = convention.alternatives("a red torus")
    for prompt in alternatives:
        for word in convention.views:
            client.offsets[f"{prompt}, {word} view"] = math.sqrt(5.0 / size)
    client.offsets["a red torus, front view"] = math.sqrt(1.0 / size)
    client.offsets["a red torus, overhead view"] = math.sqrt(3.0 / size)
    client.offsets["a red cube, overhead view"] = math.sqrt(2.0 / size)

    bank = Bank(fractions=(0.25, 0.5), seed=7, temperature=2.0)
    classifier = Classifier(small_studio(convention, client), views, bank)
    assert classifier.prompts == ["a red torus", *alternatives]
    latents = np.zeros((2, *EVENT_SHAPE), dtype=np.float32)
    errors = classifier.errors(latents)
    expected = np.full((2, 13), 5.0)
    expected[:, 0] = 1.0, 3.0
    expected[1, classifier.prompts.index("a red cube")] = 2.0
    np.testing.assert_allclose(errors, expected, rtol=1e-5)

    score = classifier.score(latents)
    front = math.exp(-0.5) / (math.exp(-0.5) + 12 * math.exp(-2.5))
    overhead = math.exp(-1.5) / (math.exp(-1.5) + math.exp(-1.0) + 11 * math.exp(-2.5))
    assert score.probability == pytest.approx((front + overhead) / 2, rel=1e-5)
    assert score.accuracy == 0.5  # from above it is taken for a cube
    assert score.margin == pytest.approx(((5 - 1) + (2 - 3)) / 2, rel=1e-5)


def test_all_prompts_share_one_bank(convention: Convention, views: list[View]) -> None:
    client = FakeClient()
    classifier = Classifier(small_studio(convention, client), views, Bank(fractions=(0.25, 0.5)))
    classifier.errors(np.zeros((2, *EVENT_SHAPE), dtype=np.float32))
    assert {tuple(each["timesteps"]) for each in client.predictions} == {(250, 500)}
    assert {each["seed"] for each in client.predictions} == {Bank().seed}
    for each in client.predictions:  # every prompt carries the view's word
        assert each["prompts"][0].endswith("front view")
        assert each["prompts"][1].endswith("overhead view")


def test_the_same_latents_are_scored_once(convention: Convention, views: list[View]) -> None:
    client = FakeClient()
    classifier = Classifier(small_studio(convention, client), views)
    latents = np.zeros((2, *EVENT_SHAPE), dtype=np.float32)
    first = classifier.score(latents)
    asked = len(client.predictions)
    assert classifier.score(latents.copy()) == first and len(client.predictions) == asked
    classifier.score(latents + 1)
    assert len(client.predictions) == 2 * asked


@pytest.mark.slow
def test_the_teacher_reads_its_training_images(dataset: ModuleType, studio: Studio) -> None:
    """Held-out views of the dataset's own red torus and red cube, through the real server."""
    views = held_out_views(studio.convention)
    classifier = Classifier(studio, views)
    scores = {shape: classifier.score(_latents(dataset, studio, views, shape))
              for shape in ("torus", "cube")}  # fmt: skip
    assert scores["torus"].accuracy >= 5 / 6
    assert scores["torus"].probability > 0.7 and scores["torus"].margin > 0
    assert scores["cube"].probability < 0.2 and scores["cube"].margin < 0


def _latents(dataset: ModuleType, studio: Studio, views: list[View], shape: str) -> np.ndarray:
    """Latents of a centred red ``shape`` as the training renderer draws it."""
    count = len(views)
    spec = dataset.sample_specs(count, seed=1)
    spec.shape[:] = dataset.SHAPES.index(shape)
    spec.colour[:] = list(dataset.COLOURS).index("red")
    spec.albedo[:] = (0.85, 0.12, 0.12)
    spec.azimuth[:] = [view.azimuth for view in views]
    spec.elevation[:] = [view.elevation for view in views]
    spec.radius[:] = [view.distance for view in views]
    spec.scale[:], spec.centre[:] = 1.0, 0.0
    images = torch.from_numpy(dataset.render(spec)).float() / 255
    with torch.no_grad():
        return studio.encoder(images).numpy()
