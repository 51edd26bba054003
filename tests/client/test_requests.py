"""What arguments become on the wire, and the few that are refused before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

from carv.tensors import decode_tensor, encode_tensor
from carv.v1 import conditioning_pb2, objective_pb2, sampling_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import Branch, Conditioning, InvalidRequestError, TeacherClient, guidance_branches
from carv_client._requests import enum_names
from carv_client._types import ControlVariate, Coupling, NamedWeighting, Proposal, Sampler
from tests.client.scripted_server import Answer, ScriptedServer

C = Conditioning(handle="c", teacher="mixture", label="c")
U = Conditioning(handle="u", teacher="mixture", label="u")
LATENTS = np.zeros((2, 3), np.float32)


def reply(method: str, request: Any) -> Answer:
    if method == "CreateConditioning":
        return pb.CreateConditioningResponse(
            conditionings=[conditioning_pb2.Conditioning(handle="u")]
        )
    if method == "PredictNoise":
        return pb.PredictNoiseResponse(noise_prediction=encode_tensor(np.zeros((2, 1, 3))))
    return pb.EstimateGradientResponse(
        gradient=encode_tensor(LATENTS),
        diagnostics=pb.Diagnostics(effective_sample_size=encode_tensor(np.ones(2))),
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(reply) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ScriptedServer) -> Iterator[TeacherClient]:
    with TeacherClient(server.address) as client:
        yield client


def sent(server: ScriptedServer) -> Any:
    return server.calls[-1].request


@pytest.mark.parametrize(
    ("scale", "guidance", "expected"),
    [
        (7.5, "standard", [("c", 7.5), ("u", -6.5)]),
        (1.0, "standard", [("c", 1.0)]),
        (0.0, "standard", [("u", 1.0)]),
        (6.5, "text_anchored", [("c", 7.5), ("u", -6.5)]),
        (0.0, "text_anchored", [("c", 1.0)]),
        (-1.0, "text_anchored", [("u", 1.0)]),
    ],
)
def test_guidance_conventions(
    client: TeacherClient,
    server: ScriptedServer,
    scale: float,
    guidance: Any,
    expected: list[tuple[str, float]],
) -> None:
    client.estimate_gradient(LATENTS, C, guidance_scale=scale, guidance=guidance)
    branches = sent(server).objective.branches
    assert [(b.conditionings[0], b.coefficient.constant) for b in branches] == expected
    by_hand = guidance_branches(C, U, scale, guidance)
    assert [(b.conditioning, b.coefficient) for b in by_hand] == [
        ({"c": C, "u": U}[name], a) for name, a in expected
    ]


def test_defaults(client: TeacherClient, server: ScriptedServer) -> None:
    client.estimate_gradient(LATENTS, C, guidance_scale=1.0)
    request = sent(server)
    assert request.teacher == "mixture", "the conditioning's own teacher"
    assert not request.HasField("seed")
    assert request.sampling == sampling_pb2.Sampling(draws=8), "choices are left to the server"
    objective = request.objective
    assert objective.noise_coefficient.constant == -1.0
    assert objective.weighting.named == objective_pb2.NAMED_WEIGHTING_SDS
    span = objective.prior.range
    assert (span.min_fraction, span.max_fraction) == (0.02, 0.98)
    assert not objective.HasField("reference_latents")


def test_everything_said_arrives(client: TeacherClient, server: ScriptedServer) -> None:
    table = np.linspace(0, 1, 5)
    client.estimate_gradient(
        LATENTS,
        branches=[Branch([C, U], table, use_reference_latents=True), Branch(U, -2)],
        draws=3,
        seed=2**64 - 1,
        prior=table,
        weighting=table * 2,
        sampler="global",
        proposal="weight",
        coupling="antithetic",
        control_variate="noise",
        history="run 7",
        noise_coefficient=-table,
        reference_latents=LATENTS + 1,
        return_draws=True,
        return_half_estimates=True,
    )
    request = sent(server)
    first, second = request.objective.branches
    assert list(first.conditionings) == ["c", "u"]
    assert first.use_reference_latents
    assert list(first.coefficient.table.values) == table.tolist()
    assert second.coefficient.constant == -2.0
    assert list(request.objective.prior.table.mass) == table.tolist()
    assert list(request.objective.weighting.table.values) == (table * 2).tolist()
    assert list(request.objective.noise_coefficient.table.values) == (-table).tolist()
    assert decode_tensor(request.objective.reference_latents).tolist() == (LATENTS + 1).tolist()
    assert request.sampling == sampling_pb2.Sampling(
        timestep_sampler=sampling_pb2.TIMESTEP_SAMPLER_GLOBAL,
        proposal=sampling_pb2.PROPOSAL_WEIGHT,
        noise_coupling=sampling_pb2.NOISE_COUPLING_ANTITHETIC,
        control_variate=sampling_pb2.CONTROL_VARIATE_NOISE,
        history="run 7",
        draws=3,
    )
    assert request.seed == 2**64 - 1
    assert (request.return_draws, request.return_half_estimates) == (True, True)


def test_seed_zero_is_not_no_seed(client: TeacherClient, server: ScriptedServer) -> None:
    client.estimate_gradient(LATENTS, C, guidance_scale=1.0, seed=0)
    assert sent(server).HasField("seed")


@pytest.mark.parametrize(
    ("dtype", "wire_dtype", "expected"),
    [
        (np.float64, None, np.float32),
        (np.float32, None, np.float32),
        (np.float16, None, np.float16),
        (np.float32, "float16", np.float16),
        (np.float16, "float32", np.float32),
    ],
)
def test_wire_dtype(
    client: TeacherClient, server: ScriptedServer, dtype: type, wire_dtype: Any, expected: type
) -> None:
    client.estimate_gradient(LATENTS.astype(dtype), C, guidance_scale=1.0, wire_dtype=wire_dtype)
    assert decode_tensor(sent(server).latents).dtype == expected


def test_an_overflow_travels_as_infinity_for_the_server_to_name(
    client: TeacherClient, server: ScriptedServer
) -> None:
    client.estimate_gradient(np.full((1, 1), 1e300), C, guidance_scale=1.0)
    assert np.isinf(decode_tensor(sent(server).latents)).all()


def test_explicit_draws(client: TeacherClient, server: ScriptedServer) -> None:
    client.estimate_gradient(LATENTS, C, guidance_scale=1.0, timesteps=[5, 7, 9], signs=[1, -1, 1])
    explicit = sent(server).explicit_draws
    assert decode_tensor(explicit.timesteps).tolist() == [[5, 7, 9]] * 2
    assert decode_tensor(explicit.noise_indices).tolist() == [[0, 1, 2]] * 2
    assert decode_tensor(explicit.signs).tolist() == [[1.0, -1.0, 1.0]] * 2
    assert decode_tensor(explicit.signs).dtype == np.float32
    assert not explicit.HasField("importance_weights")
    own = {"timesteps": [[1], [2]], "noise_indices": [[3], [4]], "importance_weights": [[0.5], [2]]}
    client.estimate_gradient(LATENTS, C, guidance_scale=1.0, **own)  # type: ignore[arg-type]
    explicit = sent(server).explicit_draws
    assert {name: decode_tensor(getattr(explicit, name)).tolist() for name in own} == own


def test_predict_noise(client: TeacherClient, server: ScriptedServer) -> None:
    client.predict_noise(LATENTS, C, timesteps=[1, 2, 3], seed=4)
    request = sent(server)
    assert (request.WhichOneof("input"), request.seed) == ("latents", 4)
    assert decode_tensor(request.explicit_draws.timesteps).tolist() == [[1, 2, 3]] * 2
    client.predict_noise(noisy_latents=LATENTS, conditioning=[C, U], timesteps=[8, 9])
    request = sent(server)
    assert (request.WhichOneof("input"), list(request.conditionings)) == (
        "noisy_latents",
        ["c", "u"],
    )
    assert decode_tensor(request.explicit_draws.timesteps).tolist() == [[8], [9]]
    assert not request.explicit_draws.HasField("noise_indices")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"latents": np.array([object()])}, "latents"),
        ({"latents": [[1.0], [2.0, 3.0]]}, "latents"),
        ({"conditioning": "a red torus"}, "conditioning"),
        ({"sampler": "sobol"}, "sampler"),
        ({"weighting": "vsd"}, "weighting"),
        ({"weighting": [[1.0]]}, "weighting"),
        ({"guidance": "perp"}, "guidance"),
        ({"noise_coefficient": "x"}, "noise_coefficient"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"draws": 2**31}, "sampling"),
        ({"signs": [1]}, "timesteps"),
        ({"timesteps": [1], "sampler": "iid"}, "timesteps"),
        ({"timesteps": [1], "control_variate": "none"}, "timesteps"),
        ({"timesteps": [1], "history": "run 7"}, "timesteps"),
        ({"branches": [Branch(C)]}, "branches"),
        ({"teacher": "other"}, "teacher"),
        ({"wire_dtype": "int8"}, "latents"),
    ],
)
def test_what_no_message_can_carry_is_refused_here(
    client: TeacherClient, arguments: dict[str, Any], field: str
) -> None:
    arguments = {"latents": LATENTS, "conditioning": C, **arguments}
    with pytest.raises(InvalidRequestError) as caught:
        client.estimate_gradient(**arguments)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"prompt": "a", "class_id": 1}, {"unconditional": True, "tensors": {}}, {"prompt": 5}],
)
def test_a_conditioning_takes_exactly_one_source(
    client: TeacherClient, arguments: dict[str, Any]
) -> None:
    with pytest.raises((InvalidRequestError, TypeError)):
        client.create_conditioning(**arguments)


def test_names_that_keywords_take_are_those_of_the_contract() -> None:
    assert [*get_args(Sampler)] == enum_names(sampling_pb2.TimestepSampler, "TIMESTEP_SAMPLER_")
    assert [*get_args(Proposal)] == enum_names(sampling_pb2.Proposal, "PROPOSAL_")
    controls = enum_names(sampling_pb2.ControlVariate, "CONTROL_VARIATE_")
    assert [*get_args(ControlVariate)] == controls
    assert [*get_args(Coupling)] == enum_names(sampling_pb2.NoiseCoupling, "NOISE_COUPLING_")
    weightings = enum_names(objective_pb2.NamedWeighting, "NAMED_WEIGHTING_")
    assert [*get_args(NamedWeighting)] == weightings


def test_priority_goes_with_every_computation(
    client: TeacherClient, server: ScriptedServer
) -> None:
    client.estimate_gradient(LATENTS, C, guidance_scale=1.0, priority=7)
    assert sent(server).priority == 7
    client.predict_noise(LATENTS, C, timesteps=[1], priority=-3)
    assert sent(server).priority == -3
    for call in (client.refine_gradient, client.profile_teacher):
        with pytest.raises(InvalidRequestError, match="priority"):
            list(call(LATENTS, C, guidance_scale=1.0, priority=1 << 40))  # pyright: ignore
    with pytest.raises(InvalidRequestError, match="priority"):
        client.estimate_gradient(LATENTS, C, guidance_scale=1.0, priority=1.5)  # pyright: ignore
