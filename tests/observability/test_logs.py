"""The log: one record a line, with the request that it belongs to, and nothing that was sent.

Breaks it (tried): paths of violations as clients make them; exceptions' messages as they are;
newlines let through; a microbatch's task in the context of a request; a limit that never counts.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch

from carv.v1 import conditioning_pb2
from carv.v1 import teacher_service_pb2 as pb
from carv_server.observability.access_log import AccessLog
from carv_server.observability.logs import FIELDS, configure_logging, formatter
from carv_server.settings.observability import LogConfig
from carv_server.teachers.protocol import Tensors
from tests.observability.support import settled, watched
from tests.server.streamed import Stream, details_of
from tests.server.teachers import Wrapped, oracle_teacher
from tests.server.wire import create_async, estimate_request, latents, path

SECRETS = ("ultramarine-albatross", "Bearer s3cr3t-t0ken", "0.12345679")


@contextmanager
def logged(kind: str, level: str = "debug") -> Iterator[io.StringIO]:
    """What the process logs."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level_before = list(root.handlers), root.level
    grpc_level = logging.getLogger("grpc").level
    root.handlers = []
    configure_logging(LogConfig(level, kind), stream)
    try:
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers = before
        root.setLevel(level_before)
        logging.getLogger("grpc").setLevel(grpc_level)


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def access(stream: io.StringIO) -> list[dict[str, Any]]:
    return [each for each in records(stream) if each["logger"] == "carv_server.access"]


class Talkative(Wrapped):
    """Raises with all that it was given, as libraries do."""

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        values = torch.full((2, 3), 0.12345679)
        try:
            raise KeyError(SECRETS[0])
        except KeyError as error:
            raise ValueError(f"cannot take {SECRETS[0]!r}, {values}, {values.tolist()}") from error


@pytest.mark.parametrize("kind", ["text", "json"])
def test_nothing_that_was_sent_is_in_the_log_at_debug(kind: str) -> None:
    async def main() -> None:
        async with watched(Talkative()) as (server, channel):
            handle = await create_async(channel)
            headers = (("authorization", SECRETS[1]), ("x-request-id", "step 7 of " + SECRETS[0]))

            async def ask(method: str, message: Any) -> None:
                data = message.SerializeToString()
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(path(method))(data, metadata=headers)

            source = conditioning_pb2.ConditioningSource()
            source.prompts.prompts.append(SECRETS[0])
            await ask("CreateConditioning", pb.CreateConditioningRequest(source=source))
            raw = conditioning_pb2.ConditioningSource()
            raw.tensors.tensors[SECRETS[0]].data = b"0"
            await ask("CreateConditioning", pb.CreateConditioningRequest(source=raw))
            await ask("GetTeacher", pb.GetTeacherRequest(teacher=SECRETS[0]))
            failing = estimate_request([handle])
            failing.sampling.history = SECRETS[0]
            failing.latents.data = np.full_like(latents(2), 0.12345679).tobytes()
            await ask("EstimateGradient", failing)
            await ask("EstimateGradient", estimate_request([SECRETS[0]]))
            await settled(server)

    with logged(kind) as stream:
        asyncio.run(main())
    text = stream.getvalue()
    assert "REPLICA_FAILED" in text and "ValueError" in text and "NOT_FOUND" in text
    for secret in (*SECRETS, "s3cr3t", "albatross", "0.1234"):
        assert secret not in text


def test_a_record_names_its_request() -> None:
    async def main() -> None:
        async with watched(oracle_teacher()) as (server, channel):
            handle = await create_async(channel)
            bad = estimate_request([handle], draws=0).SerializeToString()
            call = channel.unary_unary(path("EstimateGradient"))(
                bad, metadata=(("x-request-id", "run-7:step.31"),)
            )
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            stream = Stream(channel)
            await stream.ask(4, estimate_request([handle], draws=0))
            told.update(details_of(await stream.answer()).metadata)
            await stream.half_close()
            await stream.ended()
            await settled(server)

    told: dict[str, str] = {}
    with logged("json") as stream:
        asyncio.run(main())
    assert all(set(record) <= set(FIELDS) for record in records(stream))
    created, failed, inner, opened = access(stream)
    assert created["level"] == "debug" and created["code"] == "OK"
    assert failed["level"] == "info"
    assert failed["request_id"] == "run-7:step.31"
    assert failed["method"] == "EstimateGradient" and failed["code"] == "INVALID_ARGUMENT"
    assert failed["reason"] == "INVALID_FIELD" and failed["violations"] == ["sampling.draws"]
    assert failed["tenant"] == "none" and failed["teacher"] == "mixture"
    assert failed["seconds"] > 0
    assert inner["method"] == "StreamGradients/request"
    assert inner["request_id"] == f"{opened['request_id']}/4" == told["request_id"]


def test_the_log_of_one_request_is_not_that_of_another() -> None:
    """A microbatch begins in the task of the request that arrived last."""

    async def main() -> None:
        async with watched(Talkative()) as (server, channel):
            handle = await create_async(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(path("EstimateGradient"))(
                    estimate_request([handle]).SerializeToString()
                )
            await settled(server)

    with logged("json", "warning") as stream:
        asyncio.run(main())
    forward, ended = records(stream)
    assert forward["message"] == "forward failed" and "request_id" not in forward
    assert [cause["type"] for cause in forward["exception"]] == ["ValueError", "KeyError"]
    assert any("predict_noise" in frame for frame in forward["exception"][0]["frames"])
    assert ended["reason"] == "REPLICA_FAILED" and ended["level"] == "error"
    assert ended["request_id"]


@pytest.mark.parametrize("kind", ["text", "json"])
def test_nobody_begins_a_line(kind: str) -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "one\nERROR two\r\nthree", (), None)
    assert len(formatter(kind).format(record).splitlines()) == 1


def test_an_exception_keeps_what_is_not_content() -> None:
    said = "CUDA out of memory. Tried to allocate 2.00 GiB"
    try:
        raise MemoryError(said)
    except MemoryError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "no", (), None)
        import sys

        record.exc_info = sys.exc_info()
    assert said in formatter("text").format(record)
    assert json.loads(formatter("json").format(record))["exception"][0]["message"] == said


def test_a_flood_of_failures_is_cut_and_counted() -> None:
    now = [0.0]
    log = AccessLog(lambda: now[0])
    with logged("json", "info") as stream:
        for _ in range(1000):
            log.ended("GetTeacher", 5, "TEACHER_NOT_FOUND", 0.001)
        burst = len(access(stream))
        now[0] = 2.0
        for _ in range(1000):
            log.ended("GetTeacher", 5, "TEACHER_NOT_FOUND", 0.001)
    assert burst == 100 and len(access(stream)) == 140
    assert log.suppressed == 2000 - 140


def test_without_debug_what_ends_well_has_no_line() -> None:
    log = AccessLog(lambda: 0.0)
    with logged("json", "info") as stream:
        assert not log.every_request
        log.ended("GetTeacher", 0, "", 0.001)
    assert stream.getvalue() == "" and log.suppressed == 0
