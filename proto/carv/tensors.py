"""Tensor codec: numpy arrays to and from ``carv.v1.Tensor``.

Wire form: row-major, little-endian, the bytes checked against shape and dtype before
anything is allocated. bfloat16 has no numpy type, so it decodes to float32 (exactly)
and encodes from float32 by rounding to nearest even.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carv.v1 import tensor_pb2 as pb

__all__ = [
    "FLOAT_DTYPES",
    "TensorError",
    "decode_tensor",
    "dtype_name",
    "encode_tensor",
    "write_tensor",
]

Array = npt.NDArray[Any]

_ITEM_BYTES = {
    pb.D_TYPE_FLOAT32: 4,
    pb.D_TYPE_FLOAT16: 2,
    pb.D_TYPE_BFLOAT16: 2,
    pb.D_TYPE_INT64: 8,
}
_NUMPY = {
    pb.D_TYPE_FLOAT32: np.dtype("<f4"),
    pb.D_TYPE_FLOAT16: np.dtype("<f2"),
    pb.D_TYPE_INT64: np.dtype("<i8"),
}
_NAMES = {
    pb.D_TYPE_FLOAT32: "float32",
    pb.D_TYPE_FLOAT16: "float16",
    pb.D_TYPE_BFLOAT16: "bfloat16",
    pb.D_TYPE_INT64: "int64",
}
_BY_NAME = {name: value for value, name in _NAMES.items()}
_BY_KIND = {"f": "float32", "i": "int64", "u": "int64"}
_MAX_DIMENSIONS = 16

FLOAT_DTYPES = frozenset({pb.D_TYPE_FLOAT32, pb.D_TYPE_FLOAT16, pb.D_TYPE_BFLOAT16})
"""The floating-point members of ``DType``."""


class TensorError(ValueError):
    """A Tensor message that contradicts itself. ``part`` is "dtype", "shape" or "data"."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


def dtype_name(dtype: int) -> str:
    """``"float32"`` and so on; ``"unspecified"`` or the number for anything else."""
    if dtype == pb.D_TYPE_UNSPECIFIED:
        return "unspecified"
    name: str | None = _NAMES.get(dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return str(dtype) if name is None else name


def encode_tensor(array: npt.ArrayLike, dtype: str | None = None) -> pb.Tensor:
    """Encode an array of any shape.

    Args as ``write_tensor``.

    Raises:
        TensorError: the dtype cannot be sent.
    """
    message = pb.Tensor()
    write_tensor(message, array, dtype)
    return message


def write_tensor(message: pb.Tensor, array: npt.ArrayLike, dtype: str | None = None) -> None:
    """Encode into an empty message, such as a field of a larger one, which spares a copy.

    Args:
        array: float16, float32, float64 (sent as float32) or an integer type (sent as int64).
        dtype: "float32", "float16", "bfloat16" or "int64" to send as; by default the array's own.

    Raises:
        TensorError: the dtype cannot be sent.
    """
    values = np.asarray(array)
    if dtype is None:
        dtype = _BY_KIND.get(values.dtype.kind)
        if dtype is None:
            raise TensorError("dtype", f"cannot send an array of dtype {values.dtype}")
        if values.dtype == np.float16:
            dtype = "float16"
    if dtype not in _BY_NAME:
        raise TensorError("dtype", f"unknown dtype {dtype!r}; known: {', '.join(_BY_NAME)}")
    wire = _BY_NAME[dtype]
    data = _to_bfloat16(values) if dtype == "bfloat16" else values.astype(_NUMPY[wire], copy=False)
    message.dtype = wire
    message.shape.extend(values.shape)
    message.data = data.tobytes(order="C")


def decode_tensor(message: pb.Tensor) -> Array:
    """Decode to a read-only array: float32 for bfloat16, else the dtype that was sent.

    Raises:
        TensorError: unknown dtype, negative or too many dimensions, or a byte length that is
            not the product of shape and element size.
    """
    item = _ITEM_BYTES.get(message.dtype)
    if item is None:
        raise TensorError(
            "dtype", f"dtype is {dtype_name(message.dtype)}; known: {', '.join(_BY_NAME)}"
        )
    count = _element_count(message.shape)
    data = message.data  # a copy each time that it is asked for
    if len(data) != count * item:
        raise TensorError(
            "data",
            f"{len(data)} bytes, but shape {list(message.shape)} of "
            f"{dtype_name(message.dtype)} takes {count * item}",
        )
    if message.dtype == pb.D_TYPE_BFLOAT16:
        halves = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        values = (halves << np.uint32(16)).view(np.float32)
    else:
        values = np.frombuffer(data, dtype=_NUMPY[message.dtype])
    return values.reshape(tuple(message.shape))


def _element_count(shape: Sequence[int]) -> int:
    if len(shape) > _MAX_DIMENSIONS:
        raise TensorError("shape", f"{len(shape)} dimensions; the limit is {_MAX_DIMENSIONS}")
    count = 1
    for size in shape:
        if size < 0:
            raise TensorError("shape", f"negative size in {list(shape)}")
        count *= size
    return count


def _to_bfloat16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, dtype="<f4").view(np.uint32)
    # Round to nearest even on the upper half; NaN keeps a non-zero mantissa.
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2")
