"""Bad requests as our own client reports them: the class, the reason, the field."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from carv_client import (
    AsyncTeacherClient,
    CarvError,
    ClientConfig,
    Conditioning,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    TeacherClient,
)
from tests.server.teachers import oracle_teacher, running
from tests.server.wire import latents
from tests.support.oracle import EVENT_SHAPE

Call = Callable[[TeacherClient, Conditioning], object]


def _estimate(x: np.ndarray, **options: object) -> Call:
    return lambda client, conditioning: client.estimate_gradient(x, conditioning, **options)  # pyright: ignore[reportArgumentType]


CASES: dict[str, tuple[Call, str]] = {
    "shape": (_estimate(np.zeros((2, 3))), "latents.shape"),
    "int64": (_estimate(np.zeros((1, *EVENT_SHAPE), np.int64)), "latents.dtype"),
    "NaN": (_estimate(np.full((1, *EVENT_SHAPE), np.nan)), "latents.data"),
    "Inf": (_estimate(np.full((1, *EVENT_SHAPE), np.inf)), "latents.data"),
    "beyond float32": (_estimate(np.full((1, *EVENT_SHAPE), 1e300)), "latents.data"),
    "zero K": (_estimate(latents(1), draws=0), "sampling.draws"),
    "negative K": (_estimate(latents(1), draws=-1), "sampling.draws"),
    "K over the limit": (_estimate(latents(1), draws=5000), "sampling.draws"),
    "evaluations": (_estimate(latents(100), draws=1000), "sampling"),
    "range inverted": (
        _estimate(latents(1), timestep_range=(0.9, 0.1)),
        "objective.prior.range",
    ),
    "no branches": (
        lambda client, _: client.estimate_gradient(latents(1), branches=[]),
        "objective.branches",
    ),
    "timestep off the grid": (
        _estimate(latents(1), timesteps=[1000]),
        "explicit_draws.timesteps",
    ),
    "class": (
        lambda client, _: client.create_conditioning(class_id=17),
        "source.classes.class_ids[0]",
    ),
    "prompt": (lambda client, _: client.create_conditioning("a torus"), "source.prompts"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_field_is_an_invalid_request(client: TeacherClient, case: str) -> None:
    call, field = CASES[case]
    conditioning = client.create_conditioning(class_id=0)
    with pytest.raises(InvalidRequestError) as caught:
        call(client, conditioning)
    assert caught.value.reason == "INVALID_FIELD"
    assert [violation.field for violation in caught.value.violations] == [field]
    assert field in str(caught.value)


def test_an_unknown_teacher_is_not_found(client: TeacherClient) -> None:
    with pytest.raises(NotFoundError, match="mixture") as caught:
        client.get_teacher("nobody")
    assert caught.value.reason == "TEACHER_NOT_FOUND"


def test_a_request_over_the_limit_never_leaves(client: TeacherClient) -> None:
    small = ClientConfig(address=client.config.address, max_message_bytes=10_000)
    with TeacherClient(small) as own, pytest.raises(MessageTooLargeError) as caught:
        own.estimate_gradient(latents(100), client.create_conditioning(class_id=0))
    assert [violation.field for violation in caught.value.violations] == ["latents"]


@pytest.mark.parametrize("renders", [1000, 2000])
def test_a_request_over_the_servers_own_limit(renders: int) -> None:
    """A client with a larger limit is told by the server (125 KiB, rich status) or, at more than
    twice the server's limit, by its gRPC (250 KiB, plain): one error for both."""

    async def scenario() -> None:
        async with (
            running(oracle_teacher(), max_message_bytes=100 * 1024) as (server, _),
            AsyncTeacherClient(server.address) as own,
        ):
            conditioning = await own.create_conditioning(class_id=0)
            with pytest.raises(MessageTooLargeError) as caught:
                await own.estimate_gradient(latents(renders), conditioning)
        assert (caught.value.reason, caught.value.retry_delay) == ("MESSAGE_TOO_LARGE", None)

    asyncio.run(scenario())


def test_vanished_handles_of_every_render_are_created_again(client: TeacherClient) -> None:
    """64 handles that the server does not know: their NOT_FOUND must fit into one status."""
    made = client.create_conditioning(class_id=[0, 1, 2])
    lost = [
        Conditioning(f"class-{i:040d}", "", f"lost {i}", source=made[i % 3].source)
        for i in range(64)
    ]
    x = latents(64)
    found = client.estimate_gradient(x, lost, draws=1, seed=3)
    expected = client.estimate_gradient(x, [made[i % 3] for i in range(64)], draws=1, seed=3)
    assert np.array_equal(found.gradient, expected.gradient)


def test_every_error_is_a_carv_error() -> None:
    nobody = ClientConfig(address="127.0.0.1:1", retry_attempts=1)
    with TeacherClient(nobody) as client, pytest.raises(CarvError) as caught:
        client.list_teachers(timeout=5)
    assert isinstance(caught.value, ConnectionError)
