"""What replies become: every field that a server may leave out, there and left out."""

from __future__ import annotations

import numpy as np

from carv.tensors import encode_tensor
from carv.v1 import sampling_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import _replies

R, K, EVENT = 2, 4, (3,)


def response() -> pb.EstimateGradientResponse:
    integers = np.arange(R * K, dtype=np.int64).reshape(R, K)
    return pb.EstimateGradientResponse(
        gradient=encode_tensor(np.ones((R, *EVENT))),
        diagnostics=pb.Diagnostics(
            effective_sample_size=encode_tensor(np.full(R, 3.0)), past_draws=12.5
        ),
        sampling=sampling_pb2.Sampling(
            timestep_sampler=sampling_pb2.TIMESTEP_SAMPLER_NESTED,
            proposal=sampling_pb2.PROPOSAL_ADAPTIVE,
            noise_coupling=sampling_pb2.NOISE_COUPLING_ANTITHETIC,
            control_variate=sampling_pb2.CONTROL_VARIATE_NOISE,
            draws=K,
            history="run 7",
        ),
        draw_table=pb.DrawTable(
            timesteps=encode_tensor(integers),
            noise_indices=encode_tensor(integers + 1),
            signs=encode_tensor(np.ones((R, K))),
            importance_weights=encode_tensor(np.full((R, K), 0.5)),
            norms=encode_tensor(np.full((R, K), 2.0)),
            control_coefficients=encode_tensor(np.full((R, K), 0.25)),
        ),
        half_estimates=encode_tensor(np.stack([np.full((R, *EVENT), v) for v in (0.0, 2.0)])),
        draws_spent=R * K,
    )


def test_an_estimate_with_everything() -> None:
    estimate = _replies.estimate(response())
    assert (estimate.sampler, estimate.proposal) == ("nested", "adaptive")
    assert (estimate.coupling, estimate.control_variate) == ("antithetic", "noise")
    assert (estimate.history, estimate.past_draws) == ("run 7", 12.5)
    assert estimate.half_estimates is not None
    assert estimate.half_estimates.shape == (2, R, *EVENT)
    np.testing.assert_array_equal(estimate.half_estimates.mean(axis=0), estimate.gradient)
    table = estimate.draws
    assert table is not None
    assert table.norms is not None
    assert table.control_coefficients is not None
    assert (table.norms == 2.0).all()
    assert (table.control_coefficients == 0.25).all()
    assert set(table.arguments) == {"timesteps", "noise_indices", "signs", "importance_weights"}
    assert all(table.arguments[name] is getattr(table, name) for name in table.arguments)


def test_what_the_server_left_out_is_none() -> None:
    message = response()
    for name in ("half_estimates", "sampling"):
        message.ClearField(name)
    for name in ("norms", "control_coefficients"):
        message.draw_table.ClearField(name)
    estimate = _replies.estimate(message)
    assert estimate.half_estimates is None
    assert estimate.noise_variance is None
    assert (estimate.history, estimate.control_variate, estimate.proposal) == (None, None, None)
    table = estimate.draws
    assert table is not None
    assert (table.norms, table.control_coefficients) == (None, None)
