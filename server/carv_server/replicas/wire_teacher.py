"""A teacher's description, sources and conditioning as plain types and numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import numpy.typing as npt
import torch

from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.schedule import Schedule, ScheduleKind
from carv_server.teachers.protocol import (
    Classes,
    ConditioningSpec,
    Prompts,
    RawTensors,
    Source,
    TeacherDescription,
    Tensors,
    TensorSpec,
    Unconditional,
)

__all__ = [
    "PlainTensors",
    "pack_description",
    "pack_source",
    "pack_tensors",
    "unpack_description",
    "unpack_source",
    "unpack_tensors",
]

PlainTensors = Mapping[str, tuple[str, npt.NDArray[Any]]]
"""By name: torch's name of the dtype, and the values; bfloat16, which numpy lacks, as int16."""


def pack_tensors(tensors: Tensors) -> PlainTensors:
    return {
        name: (
            _dtype_name(tensor.dtype),
            (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy(),
        )
        for name, tensor in tensors.items()
    }


def unpack_tensors(tensors: PlainTensors) -> Tensors:
    """Copies out of the memory that they arrived in."""
    return {
        name: torch.from_numpy(array.copy()).view(_dtype(dtype))
        for name, (dtype, array) in tensors.items()
    }


def pack_source(source: Source) -> tuple[str, Any]:
    match source:
        case Prompts(prompts=prompts):
            return "prompts", list(prompts)
        case Classes(class_ids=class_ids):
            return "classes", list(class_ids)
        case Unconditional():
            return "unconditional", None
        case RawTensors(tensors=tensors):
            return "tensors", pack_tensors(tensors)


def unpack_source(kind: str, content: Any) -> Source:
    match kind:
        case "prompts":
            return Prompts(tuple(content))
        case "classes":
            return Classes(tuple(content))
        case "unconditional":
            return Unconditional()
        case "tensors":
            return RawTensors(unpack_tensors(content))
        case _:
            raise ValueError(f"a source of kind {kind!r}")


def pack_description(description: TeacherDescription) -> dict[str, Any]:
    schedule, conditioning = description.schedule, description.conditioning
    return {
        **_fields(description, "schedule", "prediction_type", "conditioning"),
        "prediction_type": description.prediction_type.value,
        "schedule": {**_fields(schedule, "kind"), "kind": schedule.kind.value},
        "conditioning": {
            **_fields(conditioning, "tensors"),
            "tensors": [(t.name, _dtype_name(t.dtype), t.shape) for t in conditioning.tensors],
        },
    }


def unpack_description(plain: Mapping[str, Any]) -> TeacherDescription:
    schedule, conditioning = plain["schedule"], plain["conditioning"]
    specs = tuple(
        TensorSpec(name, _dtype(dtype), tuple(shape))
        for name, dtype, shape in conditioning["tensors"]
    )
    rebuilt: dict[str, Any] = {
        "prediction_type": PredictionType(plain["prediction_type"]),
        "schedule": Schedule(
            ScheduleKind(schedule["kind"]),
            **{name: array.copy() for name, array in schedule.items() if name != "kind"},
        ),
        "conditioning": ConditioningSpec(**{**conditioning, "tensors": cast(Any, specs)}),
    }
    return TeacherDescription(**(dict[str, Any](plain) | rebuilt))


def _fields(value: Any, *but: str) -> dict[str, Any]:
    """A dataclass's fields that are plain already."""
    names = [field.name for field in fields(value) if field.name not in but]
    return {name: getattr(value, name) for name in names}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)
