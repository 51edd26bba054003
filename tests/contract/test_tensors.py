"""The tensor codec, with torch's bfloat16 as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carv.tensors import TensorError, decode_tensor, dtype_name, encode_tensor
from carv.v1 import tensor_pb2 as pb

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40, 3.4028235e38, 65504.0],
    dtype=np.float32,
)


@pytest.mark.parametrize(
    ("dtype", "wire", "item"),
    [
        (np.float32, pb.D_TYPE_FLOAT32, 4),
        (np.float16, pb.D_TYPE_FLOAT16, 2),
        (np.int64, pb.D_TYPE_INT64, 8),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4)])
def test_round_trip_is_exact(dtype: type, wire: int, item: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape) * 1000
    array = np.asarray(values, dtype=dtype)
    message = encode_tensor(array)
    assert (message.dtype, len(message.data)) == (wire, array.size * item)
    decoded = decode_tensor(pb.Tensor.FromString(message.SerializeToString()))
    assert decoded.dtype == array.dtype
    assert decoded.shape == shape
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_special_values_keep_their_bits(dtype: type) -> None:
    with np.errstate(over="ignore"):
        array = SPECIAL.astype(dtype)
    assert decode_tensor(encode_tensor(array)).tobytes() == array.tobytes()


def test_int64_extremes() -> None:
    array = np.array([np.iinfo(np.int64).min, -1, 0, np.iinfo(np.int64).max])
    np.testing.assert_array_equal(decode_tensor(encode_tensor(array)), array)


def test_bfloat16_rounds_as_torch_does() -> None:
    """Every sign, exponent and tie pattern: random float32 bits, and ties made on purpose."""
    bits = np.random.default_rng(1).integers(0, 2**32, size=200_000, dtype=np.uint32)
    ties = (bits[:50_000] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    values = np.concatenate([bits, ties, SPECIAL.view(np.uint32)]).view(np.float32)
    decoded = decode_tensor(encode_tensor(values, "bfloat16"))
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)  # NaN equals NaN here
    message = encode_tensor(values, "bfloat16")
    finite = ~np.isnan(values)
    sent = np.frombuffer(message.data, dtype="<u2")[finite]
    raw = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(sent, raw[finite])  # down to the sign of zero


def test_bytes_on_the_wire_are_little_endian_and_row_major() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = values.astype("<f4").tobytes()
    assert encode_tensor(values).data == expected
    assert encode_tensor(values.astype(">f4")).data == expected
    assert encode_tensor(np.asfortranarray(values)).data == expected
    assert encode_tensor(np.repeat(values, 2, axis=1)[:, ::2]).data == expected


@pytest.mark.parametrize(
    ("array", "wire", "back"),
    [
        (np.array([1.5, 2.5]), pb.D_TYPE_FLOAT32, np.float32),
        (np.array([1, 2], dtype=np.int32), pb.D_TYPE_INT64, np.int64),
        (np.array([1, 2], dtype=np.uint8), pb.D_TYPE_INT64, np.int64),
        ([1.0, 2.0], pb.D_TYPE_FLOAT32, np.float32),
    ],
)
def test_other_dtypes_travel_as_the_nearest(array: object, wire: int, back: type) -> None:
    message = encode_tensor(array)  # type: ignore[arg-type]
    assert message.dtype == wire
    assert decode_tensor(message).dtype == back


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["a"]), np.array([1j]), [True]])
def test_what_cannot_be_sent_is_refused(array: object) -> None:
    with pytest.raises(TensorError, match="cannot send") as caught:
        encode_tensor(array)  # type: ignore[arg-type]
    assert caught.value.part == "dtype"


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (pb.Tensor(shape=[1], data=b"0000"), "dtype"),
        (pb.Tensor(dtype=99, shape=[1], data=b"0000"), "dtype"),  # type: ignore[arg-type]
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[2], data=b"0000"), "data"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[1], data=b"000"), "data"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[], data=b""), "data"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT16, shape=[1], data=b"0000"), "data"),
        (pb.Tensor(dtype=pb.D_TYPE_INT64, shape=[0], data=b"0" * 8), "data"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[-1], data=b""), "shape"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[-1, -1], data=b"0000"), "shape"),
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[1] * 17, data=b"0000"), "shape"),
        # 2^62 elements of 4 bytes would wrap to 0 in 64 bits.
        (pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[2**31, 2**31], data=b""), "data"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(message: pb.Tensor, part: str) -> None:
    with pytest.raises(TensorError) as caught:
        decode_tensor(message)
    assert caught.value.part == part


def test_a_decoded_array_is_read_only() -> None:
    assert not decode_tensor(encode_tensor(np.zeros(2, np.float32))).flags.writeable


def test_dtype_names_cover_the_enum() -> None:
    assert [dtype_name(value) for value in pb.DType.values()] == [
        "unspecified",
        "float32",
        "float16",
        "bfloat16",
        "int64",
    ]
