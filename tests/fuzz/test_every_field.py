"""The validation table: every field of every request message, set to every wrong value of its type
in a request that is good otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from carv.tensors import encode_tensor
from tests.fuzz.calls import METHODS, Fuzzed, good_requests, message_of, outcome
from tests.support.oracle import EVENT_SHAPE

INF, NAN = float("inf"), float("nan")
WRONG: dict[int, list[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: [0, -1, 33, 2**31 - 1, -(2**31)],
    FieldDescriptor.CPPTYPE_ENUM: [0, 99, -1, 2**31 - 1],
    FieldDescriptor.CPPTYPE_INT64: [0, -1, 1001, 2**62, 2**63 - 1, -(2**63)],
    FieldDescriptor.CPPTYPE_UINT64: [0, 2**64 - 1],
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, -1.0, 1e-320, 1e300, INF, -INF, NAN],
    FieldDescriptor.CPPTYPE_BOOL: [True, False],
    FieldDescriptor.CPPTYPE_STRING: ["", "nobody", "\u20ac" * 3000, "a\x00b"],
}
BYTES = [b"", b"\x00", bytes(1 << 16), b"\xff" * 128]
# Whole tensors, each well-formed; no field takes any of them.
TENSORS = {
    "no renders": np.zeros((0, *EVENT_SHAPE), dtype=np.float32),
    "five renders, one too many": np.zeros((5, *EVENT_SHAPE), dtype=np.float32),
    "a side too long": np.zeros((2, 2, 4, 5), dtype=np.float32),
    "a side short": np.zeros((2, 2, 16), dtype=np.float32),
    "no side": np.zeros((), dtype=np.float32),
    "NaN": np.full((2, *EVENT_SHAPE), NAN, dtype=np.float32),
    "infinity": np.full((2, *EVENT_SHAPE), INF, dtype=np.float32),
    "whole numbers": np.zeros((2, *EVENT_SHAPE), dtype=np.int64),
    "draws below 0": np.full((2, 2), -1, dtype=np.int64),
    "draws beyond the schedule": np.full((2, 2), 1 << 40, dtype=np.int64),
    "NaN for draws": np.full((2, 2), NAN, dtype=np.float32),
    "33 draws, one too many": np.ones((2, 33), dtype=np.int64),
}
Step = tuple[FieldDescriptor, ...]


def paths(message: Descriptor, above: Step = ()) -> Iterator[Step]:
    """Of every field below a message, through the fields that lead to it."""
    for field in message.fields:
        yield (*above, field)
        if field.message_type is not None and field.message_type not in [
            step.message_type for step in above
        ]:
            yield from paths(field.message_type, (*above, field))


def _values(field: FieldDescriptor) -> list[Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return BYTES
    return WRONG.get(field.cpp_type, [])


def _in_a_map(field: FieldDescriptor) -> bool:
    owner = field.containing_type
    return owner is not None and owner.GetOptions().map_entry


def _variants(good: Any, steps: Step) -> Iterator[tuple[Any, Any, bool]]:
    """The request with that field left out, empty, and at each wrong value; the value; and whether
    no field takes it."""
    *above, last = steps

    def copy() -> tuple[Any, Any]:
        request = type(good)()
        request.CopyFrom(good)
        message = request
        for field in above:
            if _in_a_map(field):
                continue  # what a map holds is reached by the map itself
            message = getattr(message, field.name)
            assert field.message_type is not None
            if field.message_type.GetOptions().map_entry:
                message = message["class_label"]
            elif field.is_repeated:
                message = message[0] if len(message) else message.add()
        return request, message

    if _in_a_map(last):
        return  # keys are tried with their map, and fields of values one by one
    request, message = copy()
    message.ClearField(last.name)
    yield request, "left out", False
    if last.message_type is not None:
        request, message = copy()
        if last.message_type.GetOptions().map_entry:
            for key in ("", "class_label", "x" * 3000):
                getattr(message, last.name)[key].shape.append(-1)
        elif last.is_repeated:
            for _ in range(20):
                getattr(message, last.name).add()
        else:
            getattr(message, last.name).Clear()
            getattr(message, last.name).SetInParent()
        yield request, "empty", False
    if last.message_type is not None and last.message_type.full_name == "carv.v1.Tensor":
        for what, tensor in TENSORS.items():
            request, message = copy()
            getattr(message, last.name).CopyFrom(encode_tensor(tensor))
            yield request, what, True
    for value in _values(last):
        certainly = value != value or (last.enum_type is not None and value == 99)
        request, message = copy()
        if last.is_repeated:
            getattr(message, last.name).append(value)
            yield request, value, certainly
            request, message = copy()
            getattr(message, last.name)[:] = [value] * (1000 if value != "\u20ac" * 3000 else 100)
        else:
            setattr(message, last.name, value)
        yield request, value, certainly


@pytest.mark.parametrize("method", METHODS)
def test_no_wrong_value_is_a_defect(fuzzed: Fuzzed, method: str) -> None:
    """Broken by any unchecked field: R, the event's shape or the values unchecked in
    ``check_latents``, the values unchecked in ``finite_table``."""
    outcomes = Counter[str]()
    for name, good in good_requests(fuzzed):
        if name != method:
            continue
        assert outcome(fuzzed, method, good) == "OK"
        for steps in paths(message_of(method).DESCRIPTOR):
            for request, value, certainly in _variants(good, steps):
                found = outcome(fuzzed, method, request)
                outcomes[found] += 1
                assert not (certainly and found in ("OK", "NON_FINITE_RESULT")), (
                    ".".join(f.name for f in steps),
                    value,
                )
        assert outcome(fuzzed, method, good) == "OK"
    if method == "ListTeachers":
        return  # it has no fields
    refusal = "TEACHER_NOT_FOUND" if method == "GetTeacher" else "INVALID_FIELD"
    assert outcomes[refusal] > 0.2 * outcomes.total(), outcomes


def test_the_walk_sees_every_field() -> None:
    """Down to the tensors, through lists, maps and alternatives."""
    found = {
        ".".join(f.name for f in steps) for steps in paths(message_of("StreamGradients").DESCRIPTOR)
    }
    assert {
        "id",
        "timeout_seconds",
        "cancel",
        "estimate.latents.shape",
        "estimate.objective.branches.coefficient.table.values",
        "estimate.objective.prior.range.max_fraction",
        "estimate.explicit_draws.importance_weights.data",
    } <= found
