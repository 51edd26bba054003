"""Field checks that collect violations in place of raising at the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carv.errors import FieldViolation
from carv.tensors import FLOAT_DTYPES, TensorError, decode_tensor, dtype_name
from carv.v1 import objective_pb2, tensor_pb2
from carv_server.errors import invalid
from carv_server.sampling.finite import all_finite

__all__ = [
    "FLOAT32_MAX",
    "Violations",
    "check_latents",
    "coefficient_table",
    "decode",
    "draw_array",
    "finite_table",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

FLOAT32_MAX = float(np.finfo(np.float32).max)
"""Replicas compute in float32: no coefficient, weighting or scale may be beyond it."""


class Violations:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        self._found.append(FieldViolation(field, description))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        """Raises RequestError INVALID_FIELD with every violation so far."""
        if self._found:
            raise invalid(self._found)


def check_latents(
    message: tensor_pb2.Tensor,
    field: str,
    event_shape: Sequence[int],
    max_renders: int,
    violations: Violations,
) -> Float32Array | None:
    """Finite floats [R, *event_shape], 1 <= R <= max_renders; float32, or None with violations."""
    if message.dtype not in FLOAT_DTYPES:
        violations.add(
            f"{field}.dtype",
            f"{dtype_name(message.dtype)}; latents are float32, float16 or bfloat16",
        )
        return None
    values = decode(message, field, violations)
    if values is None:
        return None
    if values.ndim != len(event_shape) + 1 or values.shape[1:] != tuple(event_shape):
        expected = f"[R, {', '.join(map(str, event_shape))}]"
        violations.add(f"{field}.shape", f"{list(values.shape)}; this teacher takes {expected}")
        return None
    if not 1 <= len(values) <= max_renders:
        violations.add(f"{field}.shape", f"R is {len(values)}; it must be in 1 .. {max_renders}")
        return None
    if not all_finite(values):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        violations.add(f"{field}.data", f"{values[where]} at {list(where)}; values must be finite")
        return None
    return np.ascontiguousarray(values, dtype=np.float32)


def draw_array(
    message: tensor_pb2.Tensor,
    field: str,
    shape: tuple[int, int] | None,
    dtypes: Sequence[int],
    violations: Violations,
) -> npt.NDArray[Any] | None:
    """An [R, K] array of an allowed dtype; ``shape`` None takes any two dimensions, K >= 1."""
    if message.dtype not in dtypes:
        wanted = " or ".join(dtype_name(dtype) for dtype in dtypes)
        violations.add(f"{field}.dtype", f"{dtype_name(message.dtype)}; must be {wanted}")
        return None
    values = decode(message, field, violations)
    if values is None:
        return None
    if values.ndim != 2 or 0 in values.shape or (shape is not None and values.shape != shape):
        wanted_shape = list(shape) if shape else "[R, K] with K >= 1"
        violations.add(f"{field}.shape", f"{list(values.shape)}; must be {wanted_shape}")
        return None
    return values


def finite_table(
    values: Sequence[float],
    field: str,
    timesteps: int,
    violations: Violations,
    *,
    largest: float = FLOAT32_MAX,
) -> Float64Array | None:
    """One value for each timestep, at most ``largest`` in size, float64 [N], or None with
    violations."""
    if len(values) != timesteps:
        violations.add(field, f"{len(values)} values; the schedule has {timesteps} timesteps")
        return None
    table = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~(np.abs(table) <= largest))  # NaN compares false
    if len(bad):
        violations.add(field, f"value {int(bad[0])} is {table[bad[0]]}, {_not_finite(largest)}")
        return None
    return table


def coefficient_table(
    message: objective_pb2.Coefficient, field: str, timesteps: int, violations: Violations
) -> Float64Array | None:
    """A coefficient on the whole grid, float64 [N], or None with violations."""
    match message.WhichOneof("kind"):
        case "constant":
            if not abs(message.constant) <= FLOAT32_MAX:
                violations.add(
                    f"{field}.constant", f"{message.constant}, {_not_finite(FLOAT32_MAX)}"
                )
                return None
            return np.full(timesteps, message.constant)
        case "table":
            return finite_table(
                message.table.values, f"{field}.table.values", timesteps, violations
            )
        case _:
            violations.add(field, "set constant or table")
            return None


def decode(
    message: tensor_pb2.Tensor, field: str, violations: Violations
) -> npt.NDArray[Any] | None:
    """The array, or None with a violation of the dtype, shape or data."""
    try:
        return decode_tensor(message)
    except TensorError as error:
        violations.add(f"{field}.{error.part}", str(error))
    except ValueError as error:
        # numpy's own: an array without elements whose other sizes it cannot hold.
        violations.add(f"{field}.shape", str(error))
    return None


def _not_finite(largest: float) -> str:
    return f"must be finite and at most {largest:.8g} in size"
