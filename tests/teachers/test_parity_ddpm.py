"""EstimateGradient over gRPC against the formula in plain diffusers: pixels, classes or none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from carv_client import InvalidRequestError, TeacherClient
from tests.teachers.folders import CLASSES
from tests.teachers.reference import ReferenceTeacher, Term, assert_parity, draws_of, gradient

SEED = 97

Reference = Callable[[str], ReferenceTeacher]


def pixels(renders: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (renders, 3, *size)).astype(np.float32)


@pytest.mark.parametrize(("name", "size"), [("ddpm", (8, 8)), ("ddpm-variance", (8, 4))])
def test_unconditional(
    client: TeacherClient, reference: Reference, name: str, size: tuple[int, int]
) -> None:
    """Also a network that predicts a variance in further channels, and x0, and is not square."""
    teacher, x = reference(name), pixels(2, size)
    estimate = client.estimate_gradient(x, teacher=name, draws=4, seed=SEED, return_draws=True)
    assert estimate.evaluations_spent == 8
    expected = gradient(
        teacher,
        x,
        [Term(1.0, [None] * 2)],
        draws_of(estimate),
        seed=SEED,
        weighting=1 - teacher.alpha_bar,
    )
    assert_parity(estimate.gradient, expected)


@pytest.mark.parametrize("guidance", ["standard", "text_anchored"])
def test_guidance_by_null_class(client: TeacherClient, reference: Reference, guidance: str) -> None:
    teacher, x, scale, labels = reference("ddpm-null"), pixels(3), 4.0, [0, 3, 4]
    assert client.get_teacher("ddpm-null").classes == CLASSES
    estimate = client.estimate_gradient(
        x,
        client.create_conditioning(class_id=labels, teacher="ddpm-null"),
        guidance_scale=scale,
        guidance=guidance,  # pyright: ignore[reportArgumentType]
        weighting="fantasia3d",
        draws=3,
        seed=SEED,
        return_draws=True,
    )
    anchored = guidance == "text_anchored"
    abar = teacher.alpha_bar
    expected = gradient(
        teacher,
        x,
        [
            Term(1 + scale if anchored else scale, labels),
            Term(-scale if anchored else 1 - scale, [CLASSES] * 3),
        ],
        draws_of(estimate),
        seed=SEED,
        weighting=np.sqrt(abar) * (1 - abar),
    )
    assert_parity(estimate.gradient, expected)


def test_classes_without_null_class(client: TeacherClient, reference: Reference) -> None:
    """v prediction on the cosine schedule; no unconditional input, so scale 1 alone."""
    name = "ddpm-classes"
    teacher, x = reference(name), pixels(2)
    assert not client.get_teacher(name).has_unconditional
    conditioning = client.create_conditioning(class_id=2, teacher=name)
    estimate = client.estimate_gradient(
        x, conditioning, guidance_scale=1.0, draws=4, seed=SEED, return_draws=True
    )
    expected = gradient(
        teacher,
        x,
        [Term(1.0, [2, 2])],
        draws_of(estimate),
        seed=SEED,
        weighting=1 - teacher.alpha_bar,
    )
    assert_parity(estimate.gradient, expected)
    with pytest.raises(InvalidRequestError, match="states no null class"):
        client.estimate_gradient(x, conditioning, guidance_scale=2.0, draws=4)


@pytest.mark.parametrize("name", ["ddpm-null", "ddpm-classes"])
def test_only_classes_are_classes(client: TeacherClient, name: str) -> None:
    """The null class is not one of them: it is the unconditional input."""
    for class_id in (-1, CLASSES, CLASSES + 1):
        with pytest.raises(InvalidRequestError, match=rf"{class_id} is not in 0 \.\. 4") as caught:
            client.create_conditioning(class_id=[0, class_id], teacher=name)
        assert [v.field for v in caught.value.violations] == ["source.classes.class_ids[1]"]
    with pytest.raises(InvalidRequestError, match="takes no prompts"):
        client.create_conditioning("a red cube", teacher=name)
