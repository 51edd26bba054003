"""The rich-status codec against Google's own message classes."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2

from carv.errors import (
    DOMAIN,
    STATUS_CODES,
    ErrorDetails,
    FieldViolation,
    QuotaViolation,
    Reason,
    decode_status,
    encode_status,
)

DETAILS = ErrorDetails(
    reason=Reason.INVALID_FIELD.value,
    metadata={"teacher": "mixture", "limit": "64"},
    violations=(FieldViolation("latents.shape", "[1]"), FieldViolation("sampling.draws", "0")),
    retry_delay_seconds=1.25,
    quota_violations=(QuotaViolation("tenant:a", "evaluations_per_second: 8"),),
)


def test_every_reason_has_a_status_code() -> None:
    assert set(STATUS_CODES) == set(Reason)
    known = {code.value[0] for code in grpc.StatusCode} - {0}
    assert set(STATUS_CODES.values()) <= known
    assert all(reason.value == reason.name for reason in Reason)


@pytest.mark.parametrize(
    "details",
    [DETAILS, ErrorDetails("DRAINING"), ErrorDetails("QUEUE_FULL", retry_delay_seconds=0.0)],
)
def test_round_trip(details: ErrorDetails) -> None:
    assert decode_status(encode_status(3, "no", details)) == (3, "no", details)


def test_google_reads_what_we_write() -> None:
    status = status_pb2.Status.FromString(encode_status(code_pb2.INVALID_ARGUMENT, "no", DETAILS))
    assert (status.code, status.message) == (code_pb2.INVALID_ARGUMENT, "no")
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    for detail, message in zip(status.details, (info, bad, quota, retry), strict=True):
        assert detail.Unpack(message)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "INVALID_FIELD",
        DOMAIN,
        {"teacher": "mixture", "limit": "64"},
    )
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("latents.shape", "[1]"),
        ("sampling.draws", "0"),
    ]
    assert [(v.subject, v.description) for v in quota.violations] == [
        ("tenant:a", "evaluations_per_second: 8")
    ]
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)


def test_we_read_what_google_writes() -> None:
    status = status_pb2.Status(code=8, message="full")
    parts = (
        error_details_pb2.DebugInfo(detail="not ours: passed over"),
        error_details_pb2.RetryInfo(retry_delay={"seconds": 2, "nanos": 5}),
        error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="carv", metadata={"a": "b"}),
        error_details_pb2.BadRequest(field_violations=[{"field": "x", "description": "y"}]),
    )
    for part in parts:
        status.details.append(Any())
        status.details[-1].Pack(part)
    assert decode_status(status.SerializeToString()) == (
        8,
        "full",
        ErrorDetails("QUEUE_FULL", {"a": "b"}, (FieldViolation("x", "y"),), 2 + 5e-9),
    )


def test_bytes_that_are_no_status_decode_to_none() -> None:
    assert decode_status(b"\xff\xff\xff") is None
    broken = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    status = status_pb2.Status(code=3, details=[broken])
    assert decode_status(status.SerializeToString()) is None
    assert decode_status(b"") == (0, "", ErrorDetails(""))
