"""EstimateGradient refuses bad fields: status, reason, domain, and the field by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from carv.tensors import encode_tensor
from carv.v1 import objective_pb2, sampling_pb2, tensor_pb2
from carv.v1 import teacher_service_pb2 as pb
from tests.server.wire import (
    create,
    estimate_request,
    fails,
    latents,
    predict_request,
    send,
    stream,
    stream_fails,
)
from tests.support.oracle import EVENT_SHAPE, TIMESTEPS

Request = pb.EstimateGradientRequest
Change = Callable[[Request], object]

NAN, INF = float("nan"), float("inf")
MIB = 1024 * 1024


def _latents(values: np.ndarray, dtype: str | None = None) -> Change:
    return lambda request: request.latents.CopyFrom(encode_tensor(values, dtype))


def _poisoned(value: float, dtype: str = "float32") -> Change:
    values = latents(2)
    values[1, 0, 2, 3] = value
    return _latents(values, dtype)


def _raw(**parts: object) -> Change:
    return lambda request: request.latents.CopyFrom(tensor_pb2.Tensor(**parts))  # pyright: ignore[reportArgumentType]


def _range(low: float, high: float) -> Change:
    return lambda request: request.objective.prior.range.CopyFrom(
        objective_pb2.TimestepRange(min_fraction=low, max_fraction=high)
    )


def _constant(value: float) -> Change:
    def change(request: Request) -> None:
        request.objective.branches[0].coefficient.constant = value

    return change


def _table(field: str, values: list[float]) -> Change:
    """Fill a table below the objective by its path."""

    def change(request: Request) -> None:
        *parents, last = field.split(".")
        message: Any = request.objective
        for name in parents:
            message = message.branches[0] if name == "branch" else getattr(message, name)
        getattr(message, last).extend(values)

    return change


def _sampling(**values: int) -> Change:
    return lambda request: request.sampling.CopyFrom(
        sampling_pb2.Sampling(**{"draws": 4, **values})  # pyright: ignore[reportArgumentType]
    )


def _use_reference(request: Request) -> None:
    request.objective.branches[0].use_reference_latents = True


def _reference(values: np.ndarray, *, used: bool) -> Change:
    def change(request: Request) -> None:
        request.objective.branches[0].use_reference_latents = used
        request.objective.reference_latents.CopyFrom(encode_tensor(values))

    return change


def _branches(count: int) -> Change:
    def change(request: Request) -> None:
        branch = request.objective.branches[0]
        del request.objective.branches[:]
        request.objective.branches.extend([branch] * count)

    return change


def _handles(count: int) -> Change:
    def change(request: Request) -> None:
        branch = request.objective.branches[0]
        branch.conditionings[:] = list(branch.conditionings) * count

    return change


def _evaluations(request: Request) -> None:
    request.latents.CopyFrom(encode_tensor(latents(17)))
    request.sampling.draws = 1024


RANGE, COEFFICIENT = "objective.prior.range", "objective.branches[0].coefficient"

CASES: dict[str, tuple[Change, str]] = {
    "no latents": (lambda request: request.ClearField("latents"), "latents"),
    "event shape": (_latents(np.zeros((2, 4, 2, 4), np.float32)), "latents.shape"),
    "no render axis": (_latents(np.zeros(EVENT_SHAPE, np.float32)), "latents.shape"),
    "no renders": (_latents(np.zeros((0, *EVENT_SHAPE), np.float32)), "latents.shape"),
    "too many renders": (_latents(latents(257)), "latents.shape"),
    "negative size": (_raw(dtype=1, shape=[-2, *EVENT_SHAPE], data=b""), "latents.shape"),
    "empty but huge": (_raw(dtype=1, shape=[0, 2**62, 2**62], data=b""), "latents.shape"),
    "17 dimensions": (_raw(dtype=1, shape=[1] * 17, data=bytes(4)), "latents.shape"),
    "int64 latents": (_latents(np.zeros((2, *EVENT_SHAPE), np.int64)), "latents.dtype"),
    "no dtype": (_raw(shape=[2, *EVENT_SHAPE], data=bytes(256)), "latents.dtype"),
    "unknown dtype": (_raw(dtype=99, shape=[2, *EVENT_SHAPE], data=bytes(256)), "latents.dtype"),
    "short data": (_raw(dtype=1, shape=[2, *EVENT_SHAPE], data=bytes(255)), "latents.data"),
    "long data": (_raw(dtype=2, shape=[2, *EVENT_SHAPE], data=bytes(256)), "latents.data"),
    "NaN": (_poisoned(NAN), "latents.data"),
    "Inf": (_poisoned(INF), "latents.data"),
    "-Inf in float16": (_poisoned(-INF, "float16"), "latents.data"),
    "NaN in bfloat16": (_poisoned(NAN, "bfloat16"), "latents.data"),
    "no draws": (lambda request: request.ClearField("sampling"), "draws"),
    "zero K": (_sampling(draws=0), "sampling.draws"),
    "negative K": (_sampling(draws=-3), "sampling.draws"),
    "K over the limit": (_sampling(draws=1025), "sampling.draws"),
    "evaluations over the limit": (_evaluations, "sampling"),
    "unknown sampler": (_sampling(timestep_sampler=77), "sampling.timestep_sampler"),
    "unknown proposal": (_sampling(proposal=77), "sampling.proposal"),
    "unknown coupling": (_sampling(noise_coupling=-1), "sampling.noise_coupling"),
    "range inverted": (_range(0.9, 0.1), RANGE),
    "range NaN": (_range(NAN, 0.5), RANGE),
    "range below 0": (_range(-0.1, 0.5), RANGE),
    "range above 1": (_range(0.1, 1.5), RANGE),
    "no branches": (_branches(0), "objective.branches"),
    "too many branches": (_branches(9), "objective.branches"),
    "no handles": (_handles(0), "objective.branches[0].conditionings"),
    "handles for 3 renders": (_handles(3), "objective.branches[0].conditionings"),
    "coefficient NaN": (_constant(NAN), f"{COEFFICIENT}.constant"),
    "coefficient Inf": (_constant(INF), f"{COEFFICIENT}.constant"),
    "coefficient beyond float32": (_constant(1e300), f"{COEFFICIENT}.constant"),
    "coefficient unset": (
        lambda request: request.objective.branches[0].ClearField("coefficient"),
        COEFFICIENT,
    ),
    "coefficient table short": (
        _table("branch.coefficient.table.values", [1.0] * (TIMESTEPS - 1)),
        f"{COEFFICIENT}.table.values",
    ),
    "noise coefficient table NaN": (
        _table("noise_coefficient.table.values", [NAN] * TIMESTEPS),
        "objective.noise_coefficient.table.values",
    ),
    "weighting unknown": (
        lambda request: setattr(request.objective.weighting, "named", 55),
        "objective.weighting.named",
    ),
    "weighting table long": (
        _table("weighting.table.values", [1.0] * (TIMESTEPS + 1)),
        "objective.weighting.table.values",
    ),
    "weighting table Inf": (
        _table("weighting.table.values", [INF] * TIMESTEPS),
        "objective.weighting.table.values",
    ),
    "weighting table zero": (
        _table("weighting.table.values", [0.0] * TIMESTEPS),
        "objective.weighting",
    ),
    # Importance weights up to 20 would carry it over float32's largest.
    "weighting table too large": (
        _table("weighting.table.values", [2e37] * TIMESTEPS),
        "objective.weighting",
    ),
    "prior table short": (_table("prior.table.mass", [1.0]), "objective.prior.table.mass"),
    "prior table negative": (
        _table("prior.table.mass", [-1.0] * TIMESTEPS),
        "objective.prior.table.mass",
    ),
    "prior table zero": (
        _table("prior.table.mass", [0.0] * TIMESTEPS),
        "objective.prior.table.mass",
    ),
    "reference missing": (_use_reference, "objective.reference_latents"),
    "reference unused": (_reference(latents(2), used=False), "objective.reference_latents"),
    "reference of 3 renders": (
        _reference(latents(3), used=True),
        "objective.reference_latents.shape",
    ),
    "priority too high": (lambda request: setattr(request, "priority", 11), "priority"),
    "priority too low": (lambda request: setattr(request, "priority", -11), "priority"),
}


@pytest.mark.parametrize("case", CASES)
def test_names_the_bad_field(channel: grpc.Channel, case: str) -> None:
    change, field = CASES[case]
    good = estimate_request(create(channel, [0]))
    bad = Request()
    bad.CopyFrom(good)
    change(bad)

    failure = fails(channel, "EstimateGradient", bad)

    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.reason, failure.domain) == ("INVALID_FIELD", "carv")
    assert failure.fields == {field}
    assert field in failure.message
    assert failure.retry_delay_seconds is None
    reply = pb.EstimateGradientResponse.FromString(send(channel, "EstimateGradient", good))
    assert reply.draws_spent == 8


def test_names_every_bad_field_at_once(channel: grpc.Channel) -> None:
    request = estimate_request(create(channel, [0, 1]))
    _poisoned(NAN)(request)
    _sampling(draws=0, timestep_sampler=77)(request)
    _range(0.9, 0.1)(request)
    _constant(INF)(request)
    del request.objective.branches[1].conditionings[:]
    request.objective.branches[1].use_reference_latents = True
    request.objective.weighting.named = 55  # pyright: ignore[reportAttributeAccessIssue]
    request.objective.noise_coefficient.table.values.append(1.0)

    failure = fails(channel, "EstimateGradient", request)

    assert failure.fields == {
        "latents.data",
        "sampling.draws",
        "sampling.timestep_sampler",
        RANGE,
        f"{COEFFICIENT}.constant",
        "objective.branches[1].conditionings",
        "objective.reference_latents",
        "objective.weighting.named",
        "objective.noise_coefficient.table.values",
    }
    assert len(failure.violations) == 9


@pytest.mark.parametrize("priority", [-11, 2**31 - 1])
def test_every_computation_bounds_its_priority(channel: grpc.Channel, priority: int) -> None:
    (handle,) = create(channel, [0])
    predict = predict_request(handle, [1])
    refine = pb.RefineGradientRequest(max_draws=8)
    profile = pb.ProfileTeacherRequest()
    for request in (refine, profile):
        request.latents.CopyFrom(estimate_request([handle]).latents)
        request.objective.CopyFrom(estimate_request([handle]).objective)
    for request in (predict, refine, profile):
        request.priority = priority
    for failure in (
        fails(channel, "PredictNoise", predict),
        stream_fails(channel, "RefineGradient", refine),
        stream_fails(channel, "ProfileTeacher", profile),
    ):
        assert failure.fields == {"priority"}
        assert "-10 .. 10" in failure.message
    for request in (predict, refine, profile):
        request.priority = 10
    send(channel, "PredictNoise", predict)
    assert stream(channel, "RefineGradient", refine)
    assert stream(channel, "ProfileTeacher", profile)
