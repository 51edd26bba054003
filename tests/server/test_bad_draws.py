"""Explicit draws that break the contract, in EstimateGradient and in PredictNoise."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
import pytest

from carv.tensors import encode_tensor
from carv.v1 import sampling_pb2
from carv.v1 import teacher_service_pb2 as pb
from tests.server.wire import create, estimate_request, fails, latents, predict_request
from tests.support.oracle import TIMESTEPS

Change = Callable[[sampling_pb2.ExplicitDraws], object]

R, K = 2, 3
T, INDEX, SIGN, WEIGHT = "timesteps", "noise_indices", "signs", "importance_weights"


def _set(field: str, values: object, dtype: str | None = None) -> Change:
    return lambda draws: getattr(draws, field).CopyFrom(encode_tensor(np.asarray(values), dtype))


def _grid(value: float, kind: type = np.int64) -> np.ndarray:
    """[R, K] of ones but for one entry."""
    values = np.ones((R, K), dtype=kind)
    values[1, 2] = value
    return values


CASES: dict[str, tuple[Change, str]] = {
    "t absent": (lambda draws: draws.ClearField(T), f"{T}.dtype"),
    "t below the grid": (_set(T, _grid(-1)), T),
    "t above the grid": (_set(T, _grid(TIMESTEPS)), T),
    "t of float": (_set(T, np.ones((R, K), np.float32)), f"{T}.dtype"),
    "t without K": (_set(T, [1, 2]), f"{T}.shape"),
    "t with K = 0": (_set(T, np.ones((R, 0), np.int64)), f"{T}.shape"),
    "t for other renders": (
        lambda draws: [_set(f, np.ones((R + 1, K), np.int64))(draws) for f in (T, INDEX)],
        f"{T}.shape",
    ),
    "K over the limit": (
        lambda draws: [_set(f, np.ones((R, 1025), np.int64))(draws) for f in (T, INDEX)],
        f"{T}.shape",
    ),
    "index absent": (lambda draws: draws.ClearField(INDEX), f"{INDEX}.dtype"),
    "index negative": (_set(INDEX, _grid(-1)), INDEX),
    "index of 33 bits": (_set(INDEX, _grid(2**32)), INDEX),
    "index of other shape": (_set(INDEX, np.ones((K, R), np.int64)), f"{INDEX}.shape"),
    "sign zero": (_set(SIGN, _grid(0.0, np.float32)), SIGN),
    "sign NaN": (_set(SIGN, _grid(float("nan"), np.float32)), SIGN),
    "sign of other shape": (_set(SIGN, np.ones((R, 1), np.float32)), f"{SIGN}.shape"),
    "sign of int64": (_set(SIGN, _grid(1)), f"{SIGN}.dtype"),
    "weight NaN": (_set(WEIGHT, _grid(float("nan"), np.float32)), WEIGHT),
    "weight Inf": (_set(WEIGHT, _grid(float("inf"), np.float32)), WEIGHT),
    "weight of float16": (_set(WEIGHT, _grid(1.0, np.float32), "float16"), f"{WEIGHT}.dtype"),
    "weight of other shape": (_set(WEIGHT, np.ones(K, np.float32)), f"{WEIGHT}.shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_estimate_names_the_bad_draws(channel: grpc.Channel, case: str) -> None:
    change, field = CASES[case]
    request = estimate_request(create(channel, [0]), renders=R)
    request.explicit_draws.CopyFrom(predict_request("", [1, 1, 1], R).explicit_draws)
    change(request.explicit_draws)
    failure = fails(channel, "EstimateGradient", request)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == {f"explicit_draws.{field}"}


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("weight")])
def test_predict_names_the_bad_draws(channel: grpc.Channel, case: str) -> None:
    change, field = CASES[case]
    request = predict_request(create(channel, [0])[0], [1, 1, 1], R)
    change(request.explicit_draws)
    failure = fails(channel, "PredictNoise", request)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == {f"explicit_draws.{field}"}


def test_weights_that_overflow_with_the_weighting_are_refused(channel: grpc.Channel) -> None:
    request = estimate_request(create(channel, [0]), renders=R)
    request.explicit_draws.CopyFrom(predict_request("", [1, 1, 1], R).explicit_draws)
    _set(WEIGHT, _grid(3e38, np.float32))(request.explicit_draws)
    request.objective.weighting.table.values.extend([10.0] * TIMESTEPS)
    failure = fails(channel, "EstimateGradient", request)
    assert failure.fields == {"explicit_draws.importance_weights"}


def _noisy(request: pb.PredictNoiseRequest) -> None:
    request.noisy_latents.CopyFrom(encode_tensor(latents(R)))
    request.explicit_draws.Clear()
    _set(T, np.ones((R, 1), np.int64))(request.explicit_draws)


def test_noisy_latents_take_one_timestep_each_and_nothing_else(channel: grpc.Channel) -> None:
    request = predict_request(create(channel, [0])[0], [1], R)
    _noisy(request)
    _set(T, np.ones((R, 2), np.int64))(request.explicit_draws)
    assert fails(channel, "PredictNoise", request).fields == {"explicit_draws.timesteps.shape"}
    _noisy(request)
    for field in (INDEX, SIGN, WEIGHT):
        kind = np.int64 if field == INDEX else np.float32
        _set(field, np.ones((R, 1), kind))(request.explicit_draws)
    assert fails(channel, "PredictNoise", request).fields == {
        "explicit_draws.noise_indices",
        "explicit_draws.signs",
        "explicit_draws.importance_weights",
    }


def test_an_empty_prediction_request_is_told_all_that_it_lacks(channel: grpc.Channel) -> None:
    failure = fails(channel, "PredictNoise", pb.PredictNoiseRequest())
    assert failure.fields == {"input", "explicit_draws", "conditionings"}


def test_bad_latents_of_a_prediction_are_named(channel: grpc.Channel) -> None:
    request = predict_request(create(channel, [0])[0], [1], R)
    request.latents.CopyFrom(encode_tensor(np.full((R, 2, 4, 4), np.nan, np.float32)))
    assert fails(channel, "PredictNoise", request).fields == {"latents.data"}
    _noisy(request)
    request.noisy_latents.shape[1] = 3
    assert fails(channel, "PredictNoise", request).fields == {"noisy_latents.data"}
