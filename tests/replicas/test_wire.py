"""What crosses into another process arrives as it was, to the bit, and is small."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from carv_server.replicas.forward import evaluate
from carv_server.replicas.protocol import Branch, MicrobatchResult, NonFiniteDraw, WorkResult
from carv_server.replicas.wire import (
    PackedWorks,
    pack_results,
    pack_works,
    unpack_results,
    unpack_works,
)
from carv_server.replicas.wire_teacher import (
    pack_description,
    pack_source,
    pack_tensors,
    unpack_description,
    unpack_source,
    unpack_tensors,
)
from carv_server.sampling.reduce import Moments, Reduction
from carv_server.teachers.protocol import (
    Classes,
    ConditioningSpec,
    Prompts,
    RawTensors,
    TensorSpec,
    Unconditional,
)
from tests.replicas.wire_works import conditioning, every_kind, make
from tests.server.teachers import FaultyTeacher, oracle_teacher


def _crossed(value: Any) -> Any:
    """As Ray hands it over: arrays by out-of-band buffers that are read-only."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])


def _same(one: Any, other: Any) -> bool:
    """Equal to the bit, in type, dtype, shape and order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.contiguous().view(-1).view(torch.uint8).tolist()
            == other.contiguous().view(-1).view(torch.uint8).tolist()
        )
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if is_dataclass(one):
        return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    return one == other


def _across(packed: PackedWorks) -> list[Any]:
    packet = _crossed(packed.packet)
    return unpack_works(packet, packed.latents, lambda handle: packed.conditionings[handle])


def test_every_field_of_every_work_crosses() -> None:
    works = every_kind()
    for field in fields(works[0]):  # so that a new field cannot be forgotten here
        values = [getattr(work, field.name) for work in works]
        assert any(not _same(values[0], value) for value in values), field.name
    packed = pack_works(works)
    assert _same(list(map(_lists, works)), list(map(_lists, _across(packed))))
    assert len(packed.latents) == len(works), "one work has reference latents, two share theirs"
    assert packed.packet["handles"] == ["class-0", "class-1"]


def _lists(work: Any) -> Any:
    """With its sequences as lists, whatever they were."""
    branches = [Branch(list(b.conditionings), b.use_reference) for b in work.branches]
    return replace(work, branches=branches)


def test_a_change_of_any_field_is_seen() -> None:
    """The comparison above can fail."""
    work = make(1, streams=True, reference=True)
    changed = replace(work, signs=-work.signs)
    assert not _same(work, changed)
    assert not _same(work, replace(work, streams=None))
    assert not _same(0.0, -0.0) and _same(float("nan"), float("nan"))


def test_the_evaluation_of_what_crossed_is_the_same_to_the_bit() -> None:
    teacher, works = oracle_teacher(), every_kind()
    assert _same(evaluate(teacher, works), evaluate(teacher, _across(pack_works(works))))


def test_every_result_crosses() -> None:
    works = every_kind()
    bad = make(8, renders=2, draws=2)
    bad = replace(bad, timesteps=np.array([10, 500, 10, 10]))
    results = evaluate(FaultyTeacher(nan_at=500, raise_at=-1), [*works, bad])
    assert results[-1].failure == NonFiniteDraw(0, 500, 1)
    assert results[4].reduction is not None and results[4].reduction.twins
    assert results[5].predictions is not None and results[5].reduction is None
    by_hand = Reduction(
        {(3, 2): Moments(5, torch.tensor([1.0, -0.0, 1e-300], dtype=torch.float64), 0.1)},
        {3: float("nan"), 1: 0.5},
        {},
    )
    # Only one event shape to a teacher: what was made by hand crosses by itself.
    for batch in (results, [WorkResult(reduction=by_hand)], [results[-1]], [results[5]]):
        microbatch = MicrobatchResult(batch, 0.125)
        assert _same(microbatch, unpack_results(_crossed(pack_results(microbatch))))


def test_rows_are_small_on_the_way() -> None:
    """Six int64, four float32 and one for each branch a draw; no latents, no conditioning."""
    work = make(1, renders=4, draws=256, branches=[Branch([conditioning(c)]) for c in (0, 1)])
    size = len(pickle.dumps(pack_works([work]).packet, protocol=5))
    assert size <= 1024 * (6 * 8 + 4 * 4 + 2 * 4) + 2048


SPEC = ConditioningSpec(
    accepts_prompts=True,
    classes=7,
    has_unconditional=False,
    tensors=(TensorSpec("text", torch.bfloat16, (77, 8)), TensorSpec("label", torch.int64, ())),
    vocabulary=("red", "torus"),
)


def test_a_description_crosses() -> None:
    description = replace(
        oracle_teacher().description, conditioning=SPEC, scaling_factor=0.18215, description="x"
    )
    assert _same(description, unpack_description(_crossed(pack_description(description))))


TENSORS = {
    "text": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "half": torch.tensor([1.5, float("inf"), float("nan")], dtype=torch.float16),
    "label": torch.tensor(3),
}


def test_conditioning_crosses_in_any_dtype() -> None:
    assert _same(TENSORS, unpack_tensors(_crossed(pack_tensors(TENSORS))))


@pytest.mark.parametrize(
    "source",
    [Prompts(("a red torus", "")), Classes((3, 1)), Unconditional(), RawTensors(TENSORS)],
)
def test_a_source_crosses(source: Any) -> None:
    assert _same(source, unpack_source(*_crossed(pack_source(source))))
