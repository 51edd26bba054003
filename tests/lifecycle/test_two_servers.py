"""Two servers behind one client: the loss of either costs no call."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from carv.v1 import teacher_service_pb2 as pb
from carv_client import AsyncTeacherClient, CarvError, ClientConfig
from tests.server.wire import send
from tests.support.process import ServerProcess
from tests.support.timed import SHAPE, arguments

CALLERS = 8
KINDS = ("unary", "submitted")


def _has_computed(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        reply = send(channel, "GetTeacher", pb.GetTeacherRequest())
        return pb.GetTeacherResponse.FromString(reply).teacher.evaluation_seconds > 0


async def _load(address: str, lose: Callable[[], Any]) -> tuple[Counter[str], list[str]]:
    """Answers by kind of call since the loss, over 10 of each, and what failed; the first use of
    each handle is among the calls."""
    config = ClientConfig(address=address, load_balancing="round_robin", timeout_seconds=20.0)
    answered, failed = Counter[str](), list[str]()
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    over = False
    async with AsyncTeacherClient(config) as client:
        conditioning = await client.create_conditioning(unconditional=True)
        kept = await client.keep_latents(x)

        async def unary() -> None:
            estimate = await client.estimate_gradient(kept, conditioning, guidance_scale=1.0)
            assert estimate.draws_spent == 16

        async def submitted() -> None:
            estimate = await (await client.submit(kept, conditioning, guidance_scale=1.0))
            assert estimate.draws_spent == 16

        async def call(kind: Callable[[], Awaitable[None]]) -> None:
            while not over:
                try:
                    await kind()
                    answered[kind.__name__] += 1
                except CarvError as error:
                    failed.append(f"{kind.__name__}: {error}")

        async def load(least: int) -> None:
            """So many more answers of each kind, or a minute."""
            before = answered.copy()
            for _ in range(3000):
                if min((answered - before)[kind] for kind in KINDS) >= least:
                    break
                await asyncio.sleep(0.02)

        kinds = [unary, submitted] * (CALLERS // 2)
        calls = [asyncio.create_task(call(kind)) for kind in kinds]
        try:
            await load(50)
            await asyncio.to_thread(lose)
            before = answered.copy()
            await load(11)
        finally:
            over = True
            await asyncio.gather(*calls)
    return answered - before, failed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_the_loss_of_one_of_two_costs_no_call(tmp_path: Path, number: signal.Signals) -> None:
    """Broken by one round of creating handles again (each goes to the server that has them), by
    ``retry_attempts`` 1, and by leaving ``load_balancing`` at its default (one server idles)."""
    given = arguments(tmp_path, 0.002, 0.0005, 8)
    with ExitStack() as stack:
        servers = [ServerProcess(given) for _ in range(2)]
        for server in servers:
            stack.push(server)
        for server in servers:
            server.__enter__()

        def lose() -> None:
            end = time.monotonic() + 20.0
            while not all(_has_computed(server.address) for server in servers):
                assert time.monotonic() < end, "one of them idles"
                time.sleep(0.02)
            servers[0].process.send_signal(number)
            assert servers[0].process.wait(20) == (0 if number == signal.SIGTERM else -number)

        address = "ipv4:" + ",".join(server.address for server in servers)
        answered, failed = asyncio.run(_load(address, lose))
        assert failed == []
        assert min(answered[kind] for kind in KINDS) > 10, "no load, no test"


def test_a_lone_caller_finds_its_handles_on_each_server_in_turn(tmp_path: Path) -> None:
    """Calls alternate strictly, so that what is created again always goes to the server that has
    it already; broken by ``_ROUNDS`` 1."""
    given = arguments(tmp_path, 0.0, 0.0, 8)

    async def scenario(address: str) -> None:
        config = ClientConfig(address=address, load_balancing="round_robin")
        async with AsyncTeacherClient(config) as client:
            await client.list_teachers()
            await asyncio.sleep(0.5)  # both are connected
            conditioning = await client.create_conditioning(unconditional=True)
            x = np.zeros((1, *SHAPE), dtype=np.float32)
            for _ in range(4):
                await client.estimate_gradient(x, conditioning, guidance_scale=1.0)
            kept = await client.keep_latents(x)
            for _ in range(4):
                await client.estimate_gradient(kept, conditioning, guidance_scale=1.0)

    with ServerProcess(given) as one, ServerProcess(given) as other:
        asyncio.run(scenario(f"ipv4:{one.address},{other.address}"))
