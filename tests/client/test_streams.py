"""Streams through the client's layers, against a server that answers as told."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from carv.errors import Reason
from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_client import (
    AsyncTeacherClient,
    ClientClosedError,
    ClientConfig,
    Conditioning,
    DeadlineExceededError,
    InternalError,
    NotFoundError,
    TeacherClient,
    UnavailableError,
)
from carv_client._rpcs import REFINE_GRADIENT
from carv_client._sync import ReplyIterator
from carv_client._transport import Deadline
from tests.client.scripted_server import DEADLINES, Answer, Refusal, ScriptedServer

QUICK: dict[str, Any] = {"retry_initial_seconds": 0.01, "retry_max_seconds": 0.05}
DOWN = Refusal.of(Reason.DRAINING)


def reply(draws: int) -> pb.RefineGradientResponse:
    return pb.RefineGradientResponse(draws_spent=draws)


class Scripted(ScriptedServer):
    """Answers the n-th stream with the n-th script, the last one from then on."""

    def __init__(self, *scripts: Sequence[Answer]) -> None:
        super().__init__(self._script)
        self._scripts = scripts

    def _script(self, method: str, request: Any) -> Answer | Sequence[Answer]:
        if method == "CreateConditioning":
            made = conditioning_pb2.Conditioning(handle="new")
            return pb.CreateConditioningResponse(conditionings=[made])
        return self._scripts[min(self.count(method), len(self._scripts)) - 1]


@asynccontextmanager
async def connected(server: ScriptedServer) -> AsyncIterator[AsyncTeacherClient]:
    config = ClientConfig(address=server.address, **QUICK)
    async with AsyncTeacherClient(config, jitter=lambda: 0.5) as client:
        yield client


def stream(client: AsyncTeacherClient, seconds: float | None = 10.0) -> AsyncGenerator[Any]:
    return client._transport.stream(
        REFINE_GRADIENT, pb.RefineGradientRequest(), Deadline.after(seconds)
    )


def draws(server: ScriptedServer, seconds: float | None = 10.0) -> list[int]:
    async def main() -> list[int]:
        async with connected(server) as client:
            return [message.draws_spent async for message in stream(client, seconds)]

    return asyncio.run(main())


def test_replies_come_in_order() -> None:
    with Scripted([reply(1), reply(2), reply(3)]) as server:
        assert draws(server) == [1, 2, 3]


def test_a_stream_is_sent_again_only_while_nothing_has_arrived() -> None:
    with Scripted([DOWN], [DOWN], [reply(1)]) as server:
        assert draws(server) == [1]
        assert len(server.calls) == 3
    with Scripted([reply(1), DOWN], [reply(2)]) as server:
        with pytest.raises(UnavailableError):
            draws(server)
        assert len(server.calls) == 1


def test_a_stream_keeps_its_deadline() -> None:
    async def main(server: ScriptedServer) -> None:
        async with connected(server) as client:
            await client.create_conditioning(unconditional=True)  # connects
            for seconds in DEADLINES:
                replies = stream(client, seconds)
                try:
                    assert (await anext(replies)).draws_spent == 1
                except DeadlineExceededError:
                    continue
                with pytest.raises(DeadlineExceededError, match=f"Gradient within {seconds} s"):
                    await anext(replies)
                return
            pytest.fail("no reply ahead of any deadline")

    with Scripted([reply(1), 30.0]) as server:
        begun = time.monotonic()
        asyncio.run(main(server))
        assert time.monotonic() - begun < 20.0
        assert server.cancelled.wait(5)


def test_a_reply_that_does_not_parse() -> None:
    with Scripted([b"\xff"]) as server, pytest.raises(InternalError, match="does not parse"):
        draws(server)


def test_closing_the_generator_cancels_the_call() -> None:
    async def main(server: ScriptedServer) -> None:
        async with connected(server) as client:
            replies = stream(client, None)
            assert (await anext(replies)).draws_spent == 1
            await replies.aclose()
            assert await asyncio.to_thread(server.cancelled.wait, 5)

    with Scripted([reply(1), 30.0]) as server:
        asyncio.run(main(server))


def test_closing_the_client_ends_its_streams() -> None:
    async def main(server: ScriptedServer) -> None:
        async with connected(server) as client:
            replies = stream(client, None)
            await anext(replies)
            waiting = asyncio.create_task(anext(replies))  # pyright: ignore[reportArgumentType]
            await asyncio.sleep(0.05)
            await client.close()
            with pytest.raises(ClientClosedError):
                await waiting

    with Scripted([reply(1), 30.0]) as server:
        asyncio.run(main(server))


def test_a_forgotten_handle_is_made_again_ahead_of_the_first_reply_only() -> None:
    old = Conditioning(handle="old", teacher="", label="a", source=b"")
    gone = Refusal.of(Reason.CONDITIONING_NOT_FOUND)

    async def sent(server: ScriptedServer) -> list[int]:
        async with connected(server) as client:
            request = pb.RefineGradientRequest()
            branch = request.objective.branches.add()

            def fill() -> None:
                branch.conditionings[:] = client._handles.of([old])

            replies = client._handles.stream(
                REFINE_GRADIENT, request, fill, [old], Deadline.after(10.0)
            )
            return [message.draws_spent async for message in replies]

    with Scripted([gone], [reply(1)]) as server:
        assert asyncio.run(sent(server)) == [1]
        requests = [c.request for c in server.calls if c.method == "RefineGradient"]
        handles = [list(r.objective.branches[0].conditionings) for r in requests]
        assert handles == [["old"], ["new"]]
    cases: list[tuple[list[list[Answer]], int]] = [([[gone], [gone]], 2), ([[reply(1), gone]], 1)]
    for scripts, calls in cases:
        with Scripted(*scripts) as server:
            with pytest.raises(NotFoundError):
                asyncio.run(sent(server))
            assert server.count("RefineGradient") == calls


# The blocking iterator.


def blocking(client: TeacherClient) -> ReplyIterator[Any]:
    return client._iterate(stream, None)


def test_the_blocking_iterator_yields_the_same_and_ends() -> None:
    with Scripted([reply(1), reply(2)]) as server, TeacherClient(server.address) as client:
        replies = blocking(client)
        assert [message.draws_spent for message in replies] == [1, 2]
        assert list(replies) == []
        replies.close()


def test_errors_come_out_of_the_blocking_iterator() -> None:
    with Scripted([reply(1), DOWN]) as server, TeacherClient(server.address) as client:
        replies = blocking(client)
        assert next(replies).draws_spent == 1
        with pytest.raises(UnavailableError):
            next(replies)
        assert list(replies) == []


@pytest.mark.parametrize("ending", ["close", "with", "break", "drop"])
def test_leaving_the_blocking_iterator_ends_the_call(ending: str) -> None:
    with Scripted([reply(1), 30.0]) as server, TeacherClient(server.address) as client:
        if ending == "close":
            replies = blocking(client)
            next(replies)
            replies.close()
            assert list(replies) == []
        elif ending == "with":
            with blocking(client) as replies:
                next(replies)
        elif ending == "break":
            for _ in blocking(client):
                break
        else:
            replies = blocking(client)
            next(replies)
            del replies
        gc.collect()
        assert server.cancelled.wait(5)


def test_a_stream_keeps_its_client_open() -> None:
    with Scripted([reply(1), 0.2, reply(2)]) as server:
        replies = blocking(TeacherClient(server.address))
        next(replies)
        gc.collect()
        assert next(replies).draws_spent == 2


def test_a_closed_client_opens_no_stream() -> None:
    client = TeacherClient("localhost:1")
    client.close()
    with pytest.raises(ClientClosedError, match="the client is closed"):
        blocking(client)
