"""A request like one that was sound is checked by what may differ, and no less strictly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import torch

from carv.errors import Reason
from carv.tensors import encode_tensor
from carv.v1 import teacher_service_pb2 as pb
from carv_server.errors import RequestError
from carv_server.replicas.protocol import Conditioning
from carv_server.request import RequestLimits
from carv_server.teachers.simulated import DeviceTiming, SimulatedTeacher
from carv_server.validation import requests
from carv_server.validation.known import KnownRequests, key_of
from carv_server.validation.objective import ObjectiveCache
from carv_server.validation.requests import check_estimate
from carv_server.validation.subject import RequestContext
from tests.server.wire import estimate_request

SHAPE = (4, 8, 8)


@pytest.fixture
def handles() -> dict[str, Conditioning]:
    return {"a": Conditioning("a", {"c": torch.zeros(3)})}


@pytest.fixture
def context(handles: dict[str, Conditioning]) -> RequestContext:
    return RequestContext(
        SimulatedTeacher(SHAPE, DeviceTiming(0.0, 0.0)).description,
        RequestLimits(),
        1 << 20,
        handles.get,
        lambda handle: np.ones((2, *SHAPE), np.float32) if handle == "kept" else None,
        ObjectiveCache(),
        KnownRequests(),
        count(100).__next__,
    )


def request(renders: int = 2, value: float = 0.0) -> pb.EstimateGradientRequest:
    message = estimate_request(["a"])
    message.ClearField("seed")
    message.latents.CopyFrom(encode_tensor(np.full((renders, *SHAPE), value, np.float32)))
    return message


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with every check in full."""
    seen: list[object] = []
    whole = requests.check_subject

    def watched(*given: object) -> object:
        seen.append(None)
        return whole(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(requests, "check_subject", watched)
    return seen


def test_only_latents_and_seed_are_looked_at_again(
    context: RequestContext, checks: list[object]
) -> None:
    first = check_estimate(request(value=1.0), context)
    again = request(value=2.0)
    again.seed = 7
    found = check_estimate(again, context)
    assert len(checks) == 1
    assert (first.seed, found.seed) == (100, 7) and (found.latents == 2.0).all()
    assert found.objective is first.objective and found.draws == first.draws
    assert found.branches == first.branches and found.reference_latents is None
    assert check_estimate(request(), context).seed == 101

    by_handle = request()
    by_handle.latents_handle = "kept"
    assert (check_estimate(by_handle, context).latents == 1.0).all() and len(checks) == 1


CHANGES: dict[str, Callable[[pb.EstimateGradientRequest], object]] = {
    "coefficient": lambda m: setattr(m.objective.branches[0].coefficient, "constant", 3.0),
    "sampler": lambda m: setattr(m.sampling, "timestep_sampler", 1),
    "draws": lambda m: setattr(m.sampling, "draws", 2),
    "history": lambda m: setattr(m.sampling, "history", "other"),
    "priority": lambda m: setattr(m, "priority", 1),
    "draw table": lambda m: setattr(m, "return_draws", True),
    "halves": lambda m: setattr(m, "return_half_estimates", True),
    "reference": lambda m: (
        setattr(m.objective.branches[0], "use_reference_latents", True)
        or m.objective.reference_latents.CopyFrom(m.latents)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_else_differs_is_checked(
    change: str, context: RequestContext, checks: list[object]
) -> None:
    check_estimate(request(), context)
    other = request()
    CHANGES[change](other)
    check_estimate(other, context)
    assert len(checks) == 2


def test_what_is_at_fault_is_named_as_ever(
    context: RequestContext, handles: dict[str, Conditioning]
) -> None:
    check_estimate(request(), context)
    with pytest.raises(RequestError, match=r"latents\.data: nan") as bad:
        check_estimate(request(value=float("nan")), context)
    assert bad.value.reason is Reason.INVALID_FIELD
    two_views = request()
    two_views.objective.branches[0].conditionings.append("a")
    check_estimate(two_views, context)
    one_render = request(renders=1)
    one_render.objective.CopyFrom(two_views.objective)
    with pytest.raises(RequestError, match="2 handles; there must be 1"):
        check_estimate(one_render, context)
    del handles["a"]
    with pytest.raises(RequestError) as gone:
        check_estimate(request(), context)
    assert gone.value.reason is Reason.CONDITIONING_NOT_FOUND


def test_a_key_holds_every_field_but_what_is_looked_at_again() -> None:
    """A new field of the contract must be part of the key, or it would be ignored."""
    every = {field.name for field in pb.EstimateGradientRequest.DESCRIPTOR.fields}
    of_key = {"objective", "sampling", "priority", "return_draws", "return_half_estimates"}
    looked_at = {"teacher", "latents", "latents_handle", "seed", "explicit_draws"}
    assert every == of_key | looked_at


def test_few_and_small_ones_are_kept(context: RequestContext, checks: list[object]) -> None:
    for priority in (*range(-10, 11), *range(-10, 11)):
        for draws in (1, 2, 3, 4):
            message = request()
            message.priority, message.sampling.draws = priority, draws
            check_estimate(message, context)
    assert len(checks) == 2 * 21 * 4, "84 in turn are more than are kept"

    long = request()
    long.objective.weighting.table.values.extend([1.0] * 1000)
    explicit = request()
    explicit.explicit_draws.SetInParent()
    assert key_of(long) is None and key_of(explicit) is None
