"""Servers of a simulated device, and requests that take a known time on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from carv.tensors import encode_tensor
from carv.v1 import conditioning_pb2, sampling_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.bench.load.folders import write_simulated
from tests.server.wire import path

__all__ = ["SHAPE", "arguments", "handle_of", "timed_request", "unconditional_request"]

SHAPE = (1, 4, 4)


def arguments(folder: Path, launch_seconds: float, row_seconds: float, budget: int) -> list[str]:
    """Of ``carv serve``, for a simulated device of such timing."""
    teacher = write_simulated(folder, SHAPE, launch_seconds, row_seconds)
    return [
        "--teacher",
        f"simulated={teacher}",
        "--torch-threads",
        "1",
        "--evaluation-budget",
        str(budget),
    ]


def unconditional_request() -> bytes:
    """A CreateConditioning request."""
    source = conditioning_pb2.ConditioningSource()
    source.unconditional.SetInParent()
    return pb.CreateConditioningRequest(source=source).SerializeToString()


def timed_request(handle: str, draws: int, seed: int = 0) -> bytes:
    """An EstimateGradient request of so many evaluations."""
    x = np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)
    request = pb.EstimateGradientRequest(latents=encode_tensor(x), seed=seed)
    request.objective.branches.add(conditionings=[handle]).coefficient.constant = 1.0
    request.objective.noise_coefficient.constant = -1.0
    request.sampling.draws = draws
    request.sampling.proposal = sampling_pb2.PROPOSAL_PRIOR
    return request.SerializeToString()


def handle_of(channel: Any) -> str:
    """Of the unconditional conditioning, over a blocking channel."""
    reply = channel.unary_unary(path("CreateConditioning"))(unconditional_request(), timeout=30)
    return pb.CreateConditioningResponse.FromString(reply).conditionings[0].handle
