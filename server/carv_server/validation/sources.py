"""Conditioning sources: prompts, class ids, raw tensors and blends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from carv.tensors import FLOAT_DTYPES, dtype_name
from carv.v1 import conditioning_pb2 as pb
from carv.v1 import tensor_pb2
from carv_server.errors import handles_gone
from carv_server.replicas.protocol import Conditioning
from carv_server.request import RequestLimits
from carv_server.teachers.protocol import (
    Classes,
    ConditioningSpec,
    Prompts,
    RawTensors,
    Source,
    Tensors,
    Unconditional,
)
from carv_server.validation.checks import Violations, decode

__all__ = ["check_blend", "check_source"]

_MAX_BLEND = 64
_WEIGHT_TOLERANCE = 1e-3


def check_source(
    message: pb.ConditioningSource, spec: ConditioningSpec, limits: RequestLimits
) -> Source:
    """Any source but a blend.

    Raises:
        RequestError: INVALID_FIELD with all violations.
    """
    violations = Violations()
    source: Source | None = None
    match message.WhichOneof("source"):
        case "prompts":
            source = _prompts(message.prompts.prompts, limits, violations)
        case "classes":
            class_ids = tuple(message.classes.class_ids)
            _check_count("source.classes.class_ids", len(class_ids), limits, violations)
            source = Classes(class_ids)
        case "unconditional":
            source = Unconditional()
        case "tensors":
            source = _tensors(message.tensors.tensors, spec, violations)
        case _:
            violations.add(
                "source", "set one of prompts, classes, unconditional, tensors and blend"
            )
    violations.raise_if_any()
    assert source is not None
    return source


def check_blend(
    message: pb.BlendSource, resolve: Callable[[str], Conditioning | None]
) -> tuple[dict[str, float], Tensors]:
    """Normalised weight by handle, and the blended tensors.

    Raises:
        RequestError: INVALID_FIELD, or CONDITIONING_NOT_FOUND for a handle that is gone.
    """
    violations = Violations()
    handles, weights = list(message.handles), list(message.weights)
    if not 1 <= len(handles) <= _MAX_BLEND:
        violations.add(
            "source.blend.handles", f"{len(handles)} handles; there must be 1 .. {_MAX_BLEND}"
        )
    if len(weights) != len(handles):
        violations.add("source.blend.weights", f"{len(weights)} weights for {len(handles)} handles")
    elif not all(math.isfinite(w) and w >= 0 for w in weights) or (
        abs(sum(weights) - 1.0) > _WEIGHT_TOLERANCE
    ):
        violations.add("source.blend.weights", "must be finite, at least 0 and sum to 1")
    violations.raise_if_any()
    found = {handle: resolve(handle) for handle in handles}
    conditionings = {handle: c for handle, c in found.items() if c is not None}
    gone = {
        f"source.blend.handles[{i}]": handle
        for i, handle in enumerate(handles)
        if handle not in conditionings
    }
    if gone:
        raise handles_gone(gone)
    if len({c.signature for c in conditionings.values()}) > 1:
        violations.add("source.blend.handles", "their tensors differ in shape")
    if any(not t.is_floating_point() for c in conditionings.values() for t in c.tensors.values()):
        violations.add("source.blend.handles", "class ids cannot be blended")
    violations.raise_if_any()
    by_handle = dict.fromkeys(handles, 0.0)
    for handle, weight in zip(handles, weights, strict=True):
        by_handle[handle] += weight / sum(weights)
    names = next(iter(conditionings.values())).tensors
    blended = {
        name: torch.stack([w * conditionings[h].tensors[name] for h, w in by_handle.items()]).sum(0)
        for name in names
    }
    return by_handle, blended


def _prompts(prompts: Sequence[str], limits: RequestLimits, violations: Violations) -> Prompts:
    _check_count("source.prompts.prompts", len(prompts), limits, violations)
    for i, prompt in enumerate(prompts):
        if len(prompt) > limits.max_prompt_characters:
            violations.add(
                f"source.prompts.prompts[{i}]",
                f"{len(prompt)} characters; the limit is {limits.max_prompt_characters}",
            )
    return Prompts(tuple(prompts))


def _check_count(field: str, count: int, limits: RequestLimits, violations: Violations) -> None:
    if not 1 <= count <= limits.max_prompts:
        violations.add(field, f"{count} given; there must be 1 .. {limits.max_prompts}")


def _tensors(
    messages: Mapping[str, tensor_pb2.Tensor], spec: ConditioningSpec, violations: Violations
) -> RawTensors:
    wanted = {tensor.name: tensor for tensor in spec.tensors}
    for name in sorted(messages.keys() - wanted.keys()):
        known = ", ".join(sorted(wanted)) or "none"
        violations.add(f"source.tensors.tensors[{name[:80]}]", f"unknown name; known: {known}")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor_spec in wanted.items():
        field = f"source.tensors.tensors[{name}]"
        if name not in messages:
            violations.add(field, "must be set")
            continue
        message = messages[name]
        floating = tensor_spec.dtype.is_floating_point
        if floating != (message.dtype in FLOAT_DTYPES):
            wanted_dtype = "a float type" if floating else "int64"
            violations.add(f"{field}.dtype", f"{dtype_name(message.dtype)}; must be {wanted_dtype}")
            continue
        values = decode(message, field, violations)
        if values is None:
            continue
        if values.shape != tensor_spec.shape:
            violations.add(
                f"{field}.shape", f"{list(values.shape)}; must be {list(tensor_spec.shape)}"
            )
        elif floating and not np.isfinite(values).all():
            violations.add(f"{field}.data", "values must be finite")
        else:
            tensors[name] = torch.tensor(values).to(tensor_spec.dtype)
    return RawTensors(tensors)
