"""A mixed microbatch equals the plain formula, work by work, for every family of teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carv_server.replicas import forward
from carv_server.replicas.conditioning_cache import ConditioningCache
from carv_server.replicas.forward import Forward, evaluate
from carv_server.replicas.protocol import Conditioning, Work, WorkResult
from carv_server.replicas.staging import pack, unpack
from carv_server.sampling.reduce import Reduction, estimate_from_moments
from carv_server.teachers.protocol import Classes, Prompts, Source, Teacher, Tensors, Unconditional
from carv_server.teachers.registry import EMBEDDED, TeacherRegistration, load_teacher
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from tests.replicas.works import make, mixed
from tests.server.teachers import Wrapped, oracle_teacher
from tests.support.plain_forward import PlainResult, plain_forward
from tests.teachers.folders import write_ddpm, write_stable_diffusion


def _load(folder: Path) -> Teacher:
    registration = TeacherRegistration("teacher", folder)
    return load_teacher(registration, device=torch.device("cpu"), dtype=torch.float32)


def _embedded(_: Path) -> Teacher:
    return load_teacher(EMBEDDED, device=torch.device("cpu"), dtype=torch.float32)


TEACHERS: dict[str, tuple[Callable[[Path], Teacher], Sequence[Source]]] = {
    "analytic": (lambda _: oracle_teacher(), [Classes((0, 2)), Unconditional()]),
    "simulated": (
        lambda _: SimulatedTeacher((4, 6, 5), DeviceTiming(0.0, 0.0)),
        [Unconditional()],
    ),
    "embedded": (_embedded, [Prompts(("a red torus", "a blue cube")), Unconditional()]),
    "stable diffusion": (
        lambda path: _load(write_stable_diffusion(path, 1, prediction_type="v_prediction")),
        [Prompts(("a red cube", "b")), Unconditional()],
    ),
    "ddpm": (
        lambda path: _load(write_ddpm(path, 2, embeddings=5, size=(8, 4))),
        [Classes((0, 3, 4))],
    ),
}


@pytest.fixture(scope="module", params=list(TEACHERS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def teacher_and_conditionings(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Teacher, list[Conditioning]]:
    build, sources = TEACHERS[family]
    teacher = build(tmp_path_factory.mktemp("teacher"))
    return teacher, conditionings_of(teacher, sources)


def conditionings_of(teacher: Teacher, sources: Sequence[Source]) -> list[Conditioning]:
    rows = [row for source in sources for row in teacher.encode(source)]
    return [Conditioning(f"handle-{i}", row) for i, row in enumerate(rows)]


def gradient(reduction: Reduction, render: int, draws: int) -> np.ndarray:
    by_size = {size: m for (r, size), m in reduction.moments.items() if r == render}
    return estimate_from_moments(by_size, draws)[0].numpy()


def assert_equal(work: Work, result: WorkResult, plain: PlainResult, tolerance: float) -> None:
    """Relative, by norm: what float32 leaves of another order of the same operations, and of
    forwards of other batch sizes."""
    assert result.failure is None
    if work.keep_predictions:
        assert result.predictions is not None
        predictions = result.predictions.reshape(plain.predictions.shape)
        assert relative(predictions, plain.predictions) < tolerance
        return
    assert result.reduction is not None and result.residuals is not None
    scale = np.sqrt(plain.residuals[:, 0] * plain.residuals[:, 2])
    wrong = np.abs(result.residuals - plain.residuals)
    assert (wrong[:, 0] < 3 * tolerance * plain.residuals[:, 0]).all()
    assert (wrong[:, 1] < 3 * tolerance * scale).all()
    assert (wrong[:, 2] < 3 * tolerance * plain.residuals[:, 2]).all()
    renders = work.renders
    for render in np.unique(renders):
        own = plain.values[renders == render]
        found = gradient(result.reduction, int(render), len(own))
        assert relative(found, own.mean(axis=0), np.linalg.norm(own, axis=1).mean()) < tolerance


def relative(found: np.ndarray, expected: np.ndarray, scale: float | None = None) -> float:
    return float(np.linalg.norm(found - expected) / (scale or np.linalg.norm(expected)))


def test_a_mixed_microbatch_equals_the_plain_formula(
    family: str, teacher_and_conditionings: tuple[Teacher, list[Conditioning]]
) -> None:
    """A processor chooses the kernels of a network by the size of the batch, each with another
    rounding."""
    tolerance = 1e-6 if family in ("analytic", "simulated") else 5e-6
    teacher, conditionings = teacher_and_conditionings
    works = mixed(teacher, conditionings)
    results = Forward(teacher, max_rows=11).evaluate(works)
    for work, result in zip(works, results, strict=True):
        assert_equal(work, result, plain_forward(teacher, work), tolerance)


def test_every_small_shape_and_mix_equals_the_plain_formula() -> None:
    """All R, K, branches, with references and without, alone and in random company: tables of
    rows that happen to be as long as the draws are no table of the draws."""
    teacher = oracle_teacher()
    conditionings = conditionings_of(teacher, [Classes((0, 1))])
    shapes = [
        (renders, draws, branches, reference, paired)
        for renders in (1, 2, 3)
        for draws in (1, 2, 3, 4)
        for branches in (1, 2)
        for reference in ((False, True) if branches == 2 else (False,))
        for paired in ((False, True) if draws % 4 == 0 else (False,))
    ]
    works = [
        make(
            teacher,
            conditionings,
            seed,
            renders=renders,
            draws=draws,
            branches=branches,
            reference=reference,
            paired=paired,
        )
        for seed, (renders, draws, branches, reference, paired) in enumerate(shapes)
    ]
    rng = np.random.default_rng(0)
    company = [list(rng.choice(len(works), size=size)) for size in (2, 2, 3, 3) * 30]
    forward = Forward(teacher)
    for chosen in [[i] for i in range(len(works))] + company:
        together = [works[i] for i in chosen]
        for work, result in zip(together, forward.evaluate(together), strict=True):
            assert_equal(work, result, plain_forward(teacher, work), 1e-6)


def test_rows_cut_from_a_request_find_their_own_conditioning() -> None:
    """One by one, as at the end of a microbatch. Broken by a lone row that takes the first one."""
    teacher = oracle_teacher()
    conditionings = conditionings_of(teacher, [Classes((0, 1, 2))])
    whole = make(teacher, conditionings, 4, renders=3, draws=2)
    forward = Forward(teacher)
    for row in range(6):
        rows = slice(row, row + 1)
        by_draw = ("renders", "timesteps", "noise_indices", "groups", "cells", "signs", "scales")
        by_draw += ("noise_coefficients", "control_coefficients")
        work = replace(
            whole,
            branch_coefficients=whole.branch_coefficients[:, rows],
            **{name: getattr(whole, name)[rows] for name in by_draw},
        )
        (result,) = forward.evaluate([work])
        assert_equal(work, result, plain_forward(teacher, work), 1e-6)


def test_spreads_and_twins_of_a_mixed_microbatch_are_each_works_own() -> None:
    teacher = oracle_teacher()
    conditionings = conditionings_of(teacher, [Classes((0, 1))])

    def paired(seed: int, streams: bool) -> Work:
        return make(
            teacher,
            conditionings,
            seed,
            renders=2,
            draws=8,
            branches=2,
            paired=True,
            streams=streams,
        )

    works = [
        paired(1, streams=False),
        make(teacher, conditionings, 2, renders=3, draws=2),
        paired(3, streams=True),
    ]
    for work, result in zip(works, evaluate(teacher, works), strict=True):
        (alone,) = evaluate(teacher, [work])
        assert result.reduction is not None and alone.reduction is not None
        assert result.reduction.spreads == pytest.approx(alone.reduction.spreads, rel=1e-5)
        assert result.reduction.twins == pytest.approx(alone.reduction.twins, rel=1e-5)
        assert bool(alone.reduction.spreads) == (work is not works[1])
        assert bool(alone.reduction.twins) == (work is works[2])


def test_means_do_not_keep_the_microbatch_alive() -> None:
    teacher = oracle_teacher()
    conditionings = conditionings_of(teacher, [Classes((0,))])
    works = [make(teacher, conditionings, seed) for seed in range(16)]
    size = works[0].latents.size
    for result in evaluate(teacher, works):
        assert result.reduction is not None
        (moments,) = result.reduction.moments.values()
        assert moments.mean.untyped_storage().nbytes() == moments.mean.element_size() * size
    company = [works[0], make(teacher, conditionings, 16, draws=9, keep=True)]
    (mean,) = (m.mean for m in _reduction(evaluate(teacher, company)[0]).moments.values())
    assert mean.untyped_storage().nbytes() == mean.element_size() * size


def _reduction(result: WorkResult) -> Reduction:
    assert result.reduction is not None
    return result.reduction


class SpoilsAt(Wrapped):
    """A value of its choice at one timestep, in one element."""

    def __init__(self, timestep: int, value: float) -> None:
        super().__init__()
        self._timestep, self._value = timestep, value

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        noise = super().predict_noise(z_t, timesteps, conditioning).clone()
        noise[timesteps == self._timestep, -1, -1, -1] = self._value
        return noise


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3e38])
@pytest.mark.parametrize("keep", [False, True])
def test_a_poisoned_draw_is_named_and_fails_alone(value: float, keep: bool) -> None:
    """Also where the prediction is finite, and only the weighted value overflows."""
    teacher = SpoilsAt(7, value)
    conditionings = conditionings_of(teacher, [Classes((0,))])
    works = [make(teacher, conditionings, seed, draws=3, keep=keep) for seed in range(3)]
    works[1].timesteps[2] = 7
    if value == -3e38:
        works[1] = replace(works[1], branch_coefficients=np.full((1, 3), 2.0, dtype=np.float32))
    good, bad, also_good = evaluate(teacher, works)
    if keep and value == -3e38:
        assert bad.failure is None, "a prediction that is finite is no failure"
    else:
        assert bad.failure is not None
        assert (bad.failure.timestep, bad.failure.noise_index, bad.failure.render) == (7, 2, 0)
        assert bad.reduction is None and bad.predictions is None
    for work, result in ((works[0], good), (works[2], also_good)):
        assert_equal(work, result, plain_forward(teacher, work), 1e-6)


def test_large_finite_values_are_no_failure() -> None:
    """Squares overflow float32, the values do not."""
    teacher = SpoilsAt(7, 1e25)
    conditionings = conditionings_of(teacher, [Classes((0,))])
    work = make(teacher, conditionings, 1, draws=2)
    work.timesteps[0] = 7
    (result,) = evaluate(teacher, [work])
    assert result.failure is None and result.residuals is not None
    expected = 1e50 * float(work.branch_coefficients[0, 0]) ** 2
    assert float(result.residuals[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_what_is_packed_is_what_is_unpacked() -> None:
    """The one transfer to a device, here without one: odd lengths, both types, two axes."""
    generator = np.random.default_rng(0)
    arrays = {
        "odd": generator.normal(size=3).astype(np.float32),
        "integers": generator.integers(-5, 2**40, (4, 2)),
        "columns": np.asfortranarray(generator.integers(0, 9, (2, 3))),
        "one": generator.normal(size=1).astype(np.float32),
        "none": np.zeros(0, dtype=np.int64),
        "last": generator.normal(size=2).astype(np.float32),
    }
    values = unpack(pack(arrays, pinned=False), arrays)
    assert list(values) == list(arrays)
    for name, array in arrays.items():
        assert values[name].dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(values[name].numpy(), array)


def test_the_cache_keeps_what_was_used_last_within_its_bound() -> None:
    copies: list[str] = []

    class Counting(dict[str, torch.Tensor]):
        def items(self):  # read once for each copy to the device
            copies.append(self.name)
            return super().items()

        name = ""

    def conditioning(name: str) -> Conditioning:
        tensors = Counting(row=torch.full((4,), float(ord(name))))
        tensors.name = name
        return Conditioning(name, tensors)

    a, b, c = map(conditioning, "abc")
    cache = ConditioningCache(torch.device("cpu"), max_bytes=2 * 4 * 4)
    assert cache.table([a, b])["row"][:, 0].tolist() == [97.0, 98.0]
    cache.table([b, a])
    assert copies == ["a", "b"]
    cache.table([c])
    cache.table([a])
    assert copies == ["a", "b", "c"], "a was used after b, so b went"
    cache.table([b])
    assert copies == ["a", "b", "c", "b"]


def test_without_arithmetic_every_work_has_zeros_and_a_residual_of_unit_norm() -> None:
    teacher = SimulatedTeacher((4, 8, 8), DeviceTiming(0.0, 0.0), arithmetic=False)
    conditionings = conditionings_of(teacher, [Unconditional()])
    for work, result in zip(
        works := mixed(teacher, conditionings), evaluate(teacher, works), strict=True
    ):
        if work.keep_predictions:
            assert result.predictions is not None and not result.predictions.any()
            assert len(result.predictions) == len(work.renders)
            continue
        assert result.reduction is not None and result.residuals is not None
        assert not any(moments.mean.any() for moments in result.reduction.moments.values())
        np.testing.assert_array_equal(result.residuals, [[1.0, 0.0, 1.0]] * len(work.renders))


def test_no_noise_is_made_for_latents_that_are_z_t(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = oracle_teacher()
    conditionings = conditionings_of(teacher, [Classes((0, 1))])
    works = [make(teacher, conditionings, seed, noisy=True, keep=True) for seed in (1, 2)]
    expected = [plain_forward(teacher, work) for work in works]
    monkeypatch.setattr(forward, "draw_noise", None)
    for result, plain in zip(evaluate(teacher, works), expected, strict=True):
        assert result.predictions is not None
        predictions = result.predictions.reshape(plain.predictions.shape)
        np.testing.assert_allclose(predictions, plain.predictions, rtol=1e-5, atol=1e-6)
