"""Requests by hypothesis, from the descriptors of their messages.

Every field is drawn by its type, and mostly by its meaning too: tensors hold the bytes that their
shapes want, handles are of conditionings that are there. Half of the requests are drawn whole, and
half are good ones with a few fields drawn anew, which get past the checks and into the sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from carv.tensors import encode_tensor
from carv.v1 import tensor_pb2
from tests.support.oracle import EVENT_SHAPE, TIMESTEPS

__all__ = ["garbage", "requests"]

Draw = Callable[[st.SearchStrategy[Any]], Any]
INF, NAN = float("inf"), float("nan")

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.one_of(
        st.integers(1, 8), st.integers(-12, 40), st.sampled_from([0, 2**31 - 1, -(2**31)])
    ),
    FieldDescriptor.CPPTYPE_INT64: st.one_of(
        st.integers(0, 3), st.integers(-(2**63), 2**63 - 1), st.sampled_from([-1, 2**32, 2**62])
    ),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.one_of(
        st.floats(-2.0, 2.0), st.floats(), st.sampled_from([0.0, 1.0, INF, NAN, 1e-320, 1e300])
    ),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
_TEXT = st.one_of(st.just(""), st.text(max_size=20), st.just("\u20ac" * 200))
_MAP_KEYS = st.sampled_from(["class_label", "x", ""])


def requests(good: Sequence[Any], handles: Sequence[str]) -> st.SearchStrategy[Any]:
    """Of the message type of some good ones."""
    message = type(good[0])

    @st.composite
    def whole(draw: Draw) -> Any:
        made = message()
        _fill(draw, made, handles)
        return made

    @st.composite
    def changed(draw: Draw) -> Any:
        made = message()
        made.CopyFrom(draw(st.sampled_from(good)))
        for _ in range(draw(st.integers(1, 3))):
            _change(draw, made, handles)
        return made

    return st.one_of(whole(), changed())


def garbage(good: Sequence[Any], handles: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Bytes: any, and those of requests cut, stretched and changed."""

    @st.composite
    def spoiled(draw: Draw) -> bytes:
        data = bytearray(draw(requests(good, handles)).SerializeToString()[:4096])
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data)))
            match draw(st.sampled_from(["cut", "insert", "change", "end"])):
                case "cut":
                    del data[at : at + draw(st.integers(1, 8))]
                case "insert":
                    data[at:at] = draw(st.binary(min_size=1, max_size=8))
                case "change" if data:
                    data[min(at, len(data) - 1)] = draw(st.integers(0, 255))
                case _:
                    del data[at:]
        return bytes(data)

    return st.one_of(st.binary(max_size=64), spoiled())


def _fill(draw: Draw, message: Any, handles: Sequence[str]) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    chosen = {
        oneof.name: draw(st.sampled_from([*oneof.fields, None])) for oneof in descriptor.oneofs
    }
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1:
            if chosen[oneof.name] is not field:
                continue
        elif draw(st.integers(0, 5)) == 0:
            continue  # left out
        _set(draw, message, field, handles)


def _is_leaf(kind: Descriptor) -> bool:
    return kind.GetOptions().map_entry or kind.full_name == "carv.v1.Tensor"


def _change(draw: Draw, message: Any, handles: Sequence[str]) -> None:
    """Draw one field anew, somewhere in a message."""
    if not message.DESCRIPTOR.fields:
        return
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    value = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and not _is_leaf(kind) and draw(st.integers(0, 3)):
        if not field.is_repeated:
            if message.HasField(field.name):
                _change(draw, value, handles)
                return
        elif len(value):
            _change(draw, draw(st.sampled_from(list(value))), handles)
            return
    message.ClearField(field.name)
    _set(draw, message, field, handles)


def _set(draw: Draw, message: Any, field: FieldDescriptor, handles: Sequence[str]) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        for key in draw(st.lists(_MAP_KEYS, max_size=2, unique=True)):
            getattr(message, field.name)[key].CopyFrom(_tensor(draw, field.name))
    elif kind is not None and kind.full_name == "carv.v1.Tensor":
        getattr(message, field.name).CopyFrom(_tensor(draw, field.name))
    elif kind is not None and field.is_repeated:
        for _ in range(draw(st.integers(0, 3))):
            _fill(draw, getattr(message, field.name).add(), handles)
    elif kind is not None:
        getattr(message, field.name).SetInParent()
        _fill(draw, getattr(message, field.name), handles)
    elif field.is_repeated:
        getattr(message, field.name).extend(_values(draw, field, handles))
    else:
        setattr(message, field.name, draw(_scalar(field, handles)))


def _values(draw: Draw, field: FieldDescriptor, handles: Sequence[str]) -> list[Any]:
    one = _scalar(field, handles)
    if field.name in ("values", "mass") and draw(st.booleans()):
        return [draw(one)] * TIMESTEPS  # a table over the schedule
    return draw(st.lists(one, max_size=4))


def _scalar(field: FieldDescriptor, handles: Sequence[str]) -> st.SearchStrategy[Any]:
    if field.name == "teacher":
        return st.sampled_from(["", "", "mixture", "nobody"])
    if field.name in ("conditionings", "handles", "latents_handle", "reference_latents_handle"):
        return st.one_of(st.sampled_from(handles), st.sampled_from(handles), _TEXT)
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return st.one_of(st.sampled_from(known), st.sampled_from([*known, 99, -1]))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=32)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _TEXT
    return _SCALARS[field.cpp_type]


def _tensor(draw: Draw, name: str) -> tensor_pb2.Tensor:
    """Mostly one that the field could take."""
    renders = draw(st.integers(0, 5))
    if name in ("latents", "noisy_latents", "reference_latents"):
        array = np.full((renders, *EVENT_SHAPE), draw(st.floats(-4.0, 4.0)), dtype=np.float32)
    else:
        number = draw(st.integers(-1, TIMESTEPS))
        whole = name in ("timesteps", "noise_indices", "tensors")
        array = np.full((renders, draw(st.integers(0, 4))), number, dtype=np.int64)
        array = array if whole else array.astype(np.float32)
    made = encode_tensor(array)
    match draw(st.integers(0, 9)):
        case 0:
            made.dtype = draw(st.integers(-1, 6))
        case 1:
            made.shape[:] = draw(st.lists(st.integers(-2, 2**62), max_size=5))
        case 2:
            made.data = draw(st.binary(max_size=64))
        case 3 if made.data:
            made.data = draw(st.binary(min_size=8, max_size=8)) * (len(made.data) // 8)
        case _:
            pass
    return made
