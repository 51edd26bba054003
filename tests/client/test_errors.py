"""Exceptions as people and programs meet them."""

from __future__ import annotations

import pickle

import grpc
import pytest

from carv_client import (
    CarvError,
    ClientClosedError,
    FieldViolation,
    InvalidRequestError,
    ResourceExhaustedError,
)


def test_violations_are_readable() -> None:
    violations = [FieldViolation("latents.shape", "[1]; takes [R, 2]"), FieldViolation("k", "0")]
    error = InvalidRequestError(
        "two fields", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", violations=violations
    )
    assert str(error).splitlines() == [
        "two fields (INVALID_ARGUMENT/INVALID_FIELD)",
        "  latents.shape: [1]; takes [R, 2]",
        "  k: 0",
    ]
    told = InvalidRequestError("k: 0; latents.shape: [1]; takes [R, 2]", violations=violations)
    assert str(told).count("latents.shape") == 1, "nothing is said twice"


@pytest.mark.parametrize(
    "error",
    [
        ResourceExhaustedError(
            "full", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", {"a": "b"}, (), 1.5
        ),
        InvalidRequestError("bad", violations=(FieldViolation("x", "y"),)),
        ClientClosedError("closed"),
    ],
)
def test_errors_survive_pickling(error: CarvError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error)


def test_kinds_that_python_has_are_those_too() -> None:
    assert issubclass(InvalidRequestError, ValueError)
    assert ClientClosedError("x").code is grpc.StatusCode.CANCELLED
