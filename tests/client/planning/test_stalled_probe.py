"""A baseline probe that stalls costs the caller of draws="auto" little."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from carv.tensors import encode_tensor
from carv.v1 import sampling_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import Conditioning, DrawPlanner, TeacherClient, _auto
from tests.client.scripted_server import Answer, ScriptedServer

LATENTS = np.ones((1, 3), np.float32)
CONDITIONING = Conditioning(handle="h", teacher="", label="test")


def stalls_at_probes(method: str, request: Any) -> Answer:
    """Answers estimates at once, probes never; tells no limits, as an older server."""
    if method == "GetTeacher":
        return pb.GetTeacherResponse()
    if request.sampling.timestep_sampler == sampling_pb2.TIMESTEP_SAMPLER_IID:
        return 60.0
    draws = request.sampling.draws
    return pb.EstimateGradientResponse(
        gradient=encode_tensor(LATENTS),
        half_estimates=encode_tensor(np.stack([LATENTS, LATENTS + 1])),
        diagnostics=pb.Diagnostics(effective_sample_size=encode_tensor(np.ones(1))),
        draws_spent=draws,
        evaluations_spent=draws,
    )


@pytest.mark.parametrize(("timeout", "least"), [(40.0, 0.25), (3.0, 30.0)])
def test_the_gradient_at_hand_does_not_wait_for_a_stalled_probe(
    timeout: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times what as many draws of the estimate took, or what any probe is given; and no more
    than a quarter of the time left."""
    monkeypatch.setattr(_auto, "_LEAST_SECONDS", least)
    with ScriptedServer(stalls_at_probes) as server, TeacherClient(server.address) as client:
        planner = DrawPlanner()

        def step(timeout: float) -> np.ndarray:
            estimate = client.estimate_gradient(
                LATENTS, CONDITIONING, draws="auto", planner=planner, guidance_scale=1.0,
                timeout=timeout,
            )  # fmt: skip
            planner.observe(estimate, vjp=lambda gradient: gradient.sum(axis=0))
            return estimate.gradient

        step(30.0)  # no probe before the parameters are seen
        assert server.count("EstimateGradient") == 1
        start = time.monotonic()
        np.testing.assert_array_equal(step(timeout), LATENTS)
        assert time.monotonic() - start < 30.0, "a probe stalls for a minute"
        estimate, probe = server.calls[-2:]
        assert server.count("EstimateGradient") == 3
        assert probe.seconds_left is not None
        assert probe.request.sampling.draws == 16
        took = probe.moment - start  # and a little more
        patience = 3 * took * 16 / estimate.request.sampling.draws
        assert probe.seconds_left <= min(max(least, patience), timeout / 4) + 0.01
