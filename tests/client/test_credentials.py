"""Where a token may travel, and what the commands read credentials from."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from carv.errors import STATUS_CODES, ErrorDetails, QuotaViolation, Reason, make_status
from carv_client import AsyncTeacherClient, ClientConfig, QuotaExceededError, TeacherClient
from carv_client._config import is_local
from carv_client._credentials import add_credentials, config_of
from carv_client._errors import UnsentRequestError, from_status

LOCAL = [
    "localhost:1",
    "127.0.0.1:1",
    "127.9.9.9:1",
    "[::1]:1",
    "::1",
    "unix:/tmp/x",
    "unix-abstract:x",
    "dns:///localhost:1",
    "ipv4:127.0.0.1:1",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "ipv6:[::1]:50051,[::1]:50052",
    "ipv6:///[::1]:1",
]
ELSEWHERE = [
    "carv.example:443",
    "10.0.0.1:1",
    "0.0.0.0:1",
    "[::]:1",
    "dns:///carv.example:443",
    "localhost.example:1",
    "127.0.0.1.example:1",
    "xds:///localhost",
    "128.0.0.1:1",
    "ipv6:[::1]:50051,[2001:db8::1]:50051",
    "ipv6:[2001:db8::1]:50051,[::1]:50051",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "ipv6:[::1]:1%2C[2001:db8::1]:1",
    "ipv4:127.0.0.1:1,",
    "localhost:1,carv.example:1",
    "dns://10.0.0.1/localhost:1",
]


@pytest.mark.parametrize("address", LOCAL)
def test_a_token_travels_within_the_machine(address: str) -> None:
    assert is_local(address)
    ClientConfig(address=address, token="t")


@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_token_does_not_travel_in_the_clear(address: str) -> None:
    """Breaks with: a prefix that is taken for the host, several addresses of which one is looked
    at, or `metadata` that is not."""
    assert not is_local(address)
    ClientConfig(address=address)
    for secret in ({"token": "t"}, {"metadata": {"Authorization": "Bearer t"}}):
        with pytest.raises(ValueError, match="in the clear"):
            ClientConfig(address=address, **secret)  # pyright: ignore[reportArgumentType]
        ClientConfig(address=address, tls=True, **secret)  # pyright: ignore[reportArgumentType]
        ClientConfig(address=address, token_in_the_clear=True, **secret)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", [TeacherClient, AsyncTeacherClient])
def test_both_clients_take_credentials(kind: type[TeacherClient]) -> None:
    client = kind("carv.example:1", token="t", root_certificates=b"r")
    assert (client.config.token, client.config.root_certificates) == ("t", b"r")
    whole = ClientConfig(address="carv.example:1", tls=True, retry_attempts=2)
    client = kind(whole, token="t", private_key=b"k", certificate_chain=b"c")
    assert client.config.retry_attempts == 2 and client.config.private_key == b"k"
    with pytest.raises(ValueError, match="go together"):
        kind("localhost:1", private_key=b"k")
    with pytest.raises(ValueError, match="in the clear"):
        kind("carv.example:1", token="t")


def _config(*arguments: str, address: str = "localhost:1") -> ClientConfig:
    parser = argparse.ArgumentParser()
    add_credentials(parser)
    parsed = parser.parse_args(arguments)
    return config_of(argparse.Namespace(**vars(parsed), address=address, timeout=1.0))


def test_commands_read_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CARV_TOKEN", raising=False)
    assert _config().token is None and not _config().secure
    monkeypatch.setenv("CARV_TOKEN", "from-environment")
    assert _config().token == "from-environment"
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert _config("--token-file", str(file)).token == "from-file"
    config = _config("--tls-ca", str(file), "--tls-certificate", str(file), "--tls-key", str(file))
    assert config.root_certificates == config.certificate_chain == config.private_key
    assert config.secure
    with pytest.raises(UnsentRequestError, match="cannot be read"):
        _config("--tls-ca", str(tmp_path / "none"))
    with pytest.raises(UnsentRequestError, match="in the clear"):
        _config(address="carv.example:1")


def test_an_exceeded_quota_is_an_error_of_its_own() -> None:
    """Breaks with: the class left out of the table, or quotas out of `_made`."""
    reason, quota = Reason.QUOTA_EXCEEDED, QuotaViolation("tenant:a", "too many")
    details = ErrorDetails(reason.value, retry_delay_seconds=0.5, quota_violations=(quota,))
    error = from_status(make_status(STATUS_CODES[reason], "no", details))
    assert isinstance(error, QuotaExceededError)
    assert error.quotas == (quota,) and error.retry_delay == 0.5
