"""The same request and answer in each peer's own format.

Plain bytes are those of ``scripts.work``: the timestep, int64, and the row, float32; the answer is
the row alone. The two protobuf messages are written by hand, so that no peer's package is needed
here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from carv_server.bench.peers.scripts.work import TIMESTEP_BYTES

__all__ = ["FORMATS", "Format"]


class Format:
    """Plain bytes as they are."""

    def encode(self, plain: bytes, shape: Sequence[int]) -> bytes:
        return plain

    def decode(self, reply: bytes, answer_bytes: int) -> bytes:
        """The answer's row in a reply, of so many bytes."""
        return reply


class _JsonList(Format):
    """A JSON list of one base64 string, in and out (BentoML)."""

    def encode(self, plain: bytes, shape: Sequence[int]) -> bytes:
        return json.dumps({"rows": [base64.b64encode(plain).decode("ascii")]}).encode("ascii")

    def decode(self, reply: bytes, answer_bytes: int) -> bytes:
        return base64.b64decode(json.loads(reply)[0])


class _BytesValue(Format):
    """google.protobuf.BytesValue (Ray Serve): one field."""

    def encode(self, plain: bytes, shape: Sequence[int]) -> bytes:
        return _field(1, plain)

    def decode(self, reply: bytes, answer_bytes: int) -> bytes:
        return reply[-answer_bytes:]


class _Inference(Format):
    """ModelInferRequest of the open inference protocol with raw contents (Triton): model_name 1,
    inputs 5 {name 1, datatype 2, shape 3}, raw_input_contents 7. The reply ends with its
    raw_output_contents."""

    def encode(self, plain: bytes, shape: Sequence[int]) -> bytes:
        timestep, row = plain[:TIMESTEP_BYTES], plain[TIMESTEP_BYTES:]
        return b"".join(
            (
                _field(1, b"denoiser"),
                _field(5, self._input(b"t", b"INT64", [1, 1])),
                _field(5, self._input(b"z", b"FP32", [1, *shape])),
                _field(7, timestep),
                _field(7, row),
            )
        )

    def decode(self, reply: bytes, answer_bytes: int) -> bytes:
        return reply[-answer_bytes:]

    @staticmethod
    def _input(name: bytes, datatype: bytes, shape: Sequence[int]) -> bytes:
        return _field(1, name) + _field(2, datatype) + _field(3, b"".join(map(_varint, shape)))


FORMATS = {
    "plain": Format(),
    "json": _JsonList(),
    "bytes-value": _BytesValue(),
    "inference": _Inference(),
}


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
