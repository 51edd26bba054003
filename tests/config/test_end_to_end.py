"""A configuration file to a server process: two tenants, mutual TLS, health in plaintext."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from carv_client import (
    AuthenticationError,
    InvalidRequestError,
    PermissionDeniedError,
    TeacherClient,
)
from carv_server.cli import main
from carv_server.configured import server_config
from carv_server.settings.read import Given, read_settings
from tests.server.wire import health_stub
from tests.support.certificates import Authority
from tests.support.oracle import EVENT_SHAPE, write_oracle_folder
from tests.support.process import ServerProcess
from tests.support.tenants import tenant, token_of

NAME = "spiffe://carv.test/sim"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A folder as an operator would lay it out."""
    authority = Authority("ca")
    authority.server().write(tmp_path, "server")
    authority.client(NAME).write(tmp_path, "client")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    write_oracle_folder(tmp_path / "m")
    (tmp_path / "tenants.toml").write_text(
        f'[[tenants]]\nid = "render"\nteachers = ["one"]\nweight = 2\n'
        f'token_sha256 = ["{tenant("render").token_sha256[0].hex()}"]\n'
        f'[[tenants]]\nid = "sim"\nspiffe_ids = ["{NAME}"]\nevaluations_per_second = 1e6\n'
    )
    file = tmp_path / "carv.toml"
    file.write_text(
        'tenants_file = "tenants.toml"\n'
        '[server]\nhealth_address = "127.0.0.1:0"\nevaluation_budget = 8\ntorch_threads = 1\n'
        '[tls]\ncertificate = "server.pem"\nprivate_key = "server.key"\nclient_ca = "ca.pem"\n'
        '[[teachers]]\nid = "one"\nfolder = "m"\n'
        '[[teachers]]\nid = "two"\nfolder = "m"\ntenants = ["sim"]\nlimits = { max_draws = 3 }\n'
    )
    return file


def test_two_tenants_over_mutual_tls(config: Path) -> None:
    """Breaks with: a setting that `server_config` leaves out."""
    folder = config.parent
    tls: dict[str, Any] = {
        "root_certificates": (folder / "ca.pem").read_bytes(),
        "certificate_chain": (folder / "client.pem").read_bytes(),
        "private_key": (folder / "client.key").read_bytes(),
    }
    with ServerProcess(["--config", str(config)]) as server:
        health = re.search(r"in plaintext, on (127\.0\.0\.1:\d+)", server.log)
        assert health is not None
        with grpc.insecure_channel(health[1]) as channel:
            reply = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with TeacherClient(server.address, **tls) as sim:
            assert [teacher.id for teacher in sim.list_teachers()] == ["one", "two"]
            latents = np.zeros((1, *EVENT_SHAPE), np.float32)
            conditioning = sim.create_conditioning(class_id=0, teacher="two")
            assert sim.estimate_gradient(latents, conditioning, draws=2).draws_spent == 2
            limits = [teacher.limits.max_draws for teacher in sim.list_teachers()]
            assert limits == [1024, 3], "of its own"
            with pytest.raises(InvalidRequestError):
                sim.estimate_gradient(latents, conditioning, draws=4)
        with TeacherClient(server.address, token=token_of("render"), **tls) as render:
            assert [teacher.id for teacher in render.list_teachers()] == ["one"]
            with pytest.raises(PermissionDeniedError):
                render.get_teacher("two")
        with (
            TeacherClient(server.address, token="another", **tls) as stranger,
            pytest.raises(AuthenticationError),
        ):
            stranger.list_teachers()
        log = server.log
    assert token_of("render") not in log and "Traceback" not in log


def test_settings_reach_their_parts(config: Path) -> None:
    """Each of these differs from its default."""
    flags = {
        "--max-conditionings": "7",
        "--max-conditionings-mib": "3",
        "--tenant-percent": "20",
        "--latents-ttl": "9",
        "--max-kept-latents": "5",
        "--max-histories": "4",
        "--history-draws": "2",
        "--hold-percent": "10",
        "--max-waiting-evaluations": "11",
        "--max-stream-requests": "6",
        "--drain-seconds": "1",
        "--tls-reload-seconds": "0.5",
        "--replicas": "ray",
        "--min-replicas": "2",
        "--gpus-per-replica": "0.5",
        "--replica-start-seconds": "70",
    }
    found = server_config(read_settings(Given(config, flags), {}))
    assert (found.store.max_entries, found.store.max_bytes) == (7, 3 << 20)
    assert found.store.owner_share == found.latents.owner_share == 0.2
    assert (found.latents.seconds_to_live, found.latents.max_entries) == (9, 5)
    assert (found.history.max_histories, found.history.memory_draws) == (4, 2)
    assert (found.scheduler.hold_fraction, found.scheduler.max_waiting_evaluations) == (0.1, 11)
    assert (found.limits.max_stream_requests, found.drain_seconds) == (6, 1)
    assert found.ray is not None and found.ray.gpus_per_replica == 0.5
    assert found.ray.start_seconds == 70
    for more, seconds in (
        ({}, 600),
        ({"--compile": "true"}, 3600),
        ({"--compile": "true", "--device": "cpu"}, 600),
    ):
        given = {k: v for k, v in flags.items() if k != "--replica-start-seconds"} | more
        again = server_config(read_settings(Given(config, given), {})).ray
        assert again is not None and again.start_seconds == seconds
    assert (found.ray.scale.min_replicas, found.ray.scale.max_replicas) == (2, 2)
    assert found.tls is not None and found.tls.require_client_certificate
    assert found.tls.reload_seconds == 0.5 and found.tls.client_ca == config.parent / "ca.pem"
    assert found.tenancy is not None and len(found.tenancy.tenants) == 2
    assert found.tenancy.file == config.parent / "tenants.toml"
    assert found.teachers[1].tenants == {"sim"} and not found.tune


def test_without_tenants_one_may_fill_all(tmp_path: Path) -> None:
    found = server_config(read_settings(Given(), {"CARV_TEACHER": f"a={tmp_path}"}))
    assert found.store.owner_share == 1.0 and found.tenancy is None and found.tls is None


def test_a_public_address_without_credentials_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks with: the check left out of `check_whole`."""
    assert main(["serve", "--address", "0.0.0.0:0"]) == 2
    assert "callers need no credentials" in capsys.readouterr().err


def test_connections_age_where_tls_is_on(config: Path, tmp_path: Path) -> None:
    """Breaks with: an age that does not ask for TLS, or a grace that is shorter than the drain."""

    def found(given: Given) -> tuple[float, float]:
        whole = server_config(read_settings(given, {}))
        return whole.connection_age_seconds, whole.connection_grace_seconds

    assert found(Given(config)) == (1800.0, 600.0)
    assert found(Given(config, {"--connection-age-minutes": "0"})) == (0.0, 600.0)
    teacher = [f"a={tmp_path}"]
    assert found(Given(None, {}, teacher)) == (0.0, 600.0)
    flags = {"--connection-age-minutes": "5", "--connection-grace-seconds": "20"}
    assert found(Given(None, flags, teacher)) == (300.0, 30.0), "no shorter than the drain"
