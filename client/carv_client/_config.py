"""Everything a client may be told about how to reach a server, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Literal, get_args

from carv import DEFAULT_MAX_MESSAGE_BYTES

__all__ = ["DEFAULT_ADDRESS", "ClientConfig", "LoadBalancing", "configured", "is_local"]

LoadBalancing = Literal["pick_first", "round_robin"]

DEFAULT_ADDRESS = "localhost:50051"


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How to reach a CARV server and how patient to be. Secrets are left out of ``repr``."""

    address: str = DEFAULT_ADDRESS
    """``host:port``, or any gRPC target such as ``dns:///carv.example:443``, or
    ``ipv4:10.0.0.1:50051,10.0.0.2:50051`` for several servers."""

    load_balancing: LoadBalancing = "pick_first"
    """Which of the servers behind the address gets a call. "pick_first": all go to one of them, as
    long as it is there. "round_robin": to all in turn that are there and say that they are serving;
    handles are then created on each as they are needed."""

    timeout_seconds: float | None = 120.0
    """Deadline of a call that names none, retries and waits included; None means no deadline."""

    retry_attempts: int = 5
    """Most times that one call is sent, the first included; 1 turns retries off."""

    retry_initial_seconds: float = 0.1
    """Wait before the first retry; it doubles with each further one."""

    retry_max_seconds: float = 5.0
    """Longest such wait. A server that asks for a longer one (RetryInfo) is heeded."""

    max_in_flight: int = 32
    """Most submitted requests without an answer; ``submit`` waits for a place among them. A
    server's own limit (``Limits.max_stream_requests``) may be lower and is kept."""

    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """Largest request sent and largest reply taken. The server has a limit of its own."""

    tls: bool = False
    """Encrypt. Implied by any of the three certificates below."""

    root_certificates: bytes | None = field(default=None, repr=False)
    """PEM roots to trust in place of gRPC's own list."""

    certificate_chain: bytes | None = field(default=None, repr=False)
    """PEM client certificate, for mutual TLS; goes with ``private_key``."""

    private_key: bytes | None = field(default=None, repr=False)
    """PEM key of the client certificate."""

    token: str | None = field(default=None, repr=False)
    """Sent as ``authorization: Bearer <token>``: with TLS, or to this machine."""

    token_in_the_clear: bool = False
    """Send the token to other machines without TLS too, for whoever is on the way to read."""

    metadata: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Further gRPC metadata for every call; keys in lower case."""

    keepalive_seconds: float = 30.0
    """Time between pings while calls are in flight, so that a vanished server is noticed."""

    keepalive_timeout_seconds: float = 10.0
    """A ping unanswered for so long ends the connection, and its calls with UNAVAILABLE."""

    def __post_init__(self) -> None:
        if not self.address:
            raise ValueError("address is empty")
        if self.load_balancing not in get_args(LoadBalancing):
            raise ValueError(
                f"load_balancing is {self.load_balancing!r}; it must be one of "
                f"{', '.join(get_args(LoadBalancing))}"
            )
        if self.retry_attempts < 1:
            raise ValueError(f"retry_attempts is {self.retry_attempts}; it must be at least 1")
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight is {self.max_in_flight}; it must be at least 1")
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds is {self.timeout_seconds}; it must be above 0")
        if (self.certificate_chain is None) != (self.private_key is None):
            raise ValueError("certificate_chain and private_key go together")
        secret = self.token is not None or any(k.lower() == "authorization" for k in self.metadata)
        if secret and not (self.secure or self.token_in_the_clear or is_local(self.address)):
            raise ValueError(
                f"a token would travel to {self.address} in the clear: set tls=True or "
                "root_certificates, or token_in_the_clear=True where the network is trusted"
            )

    @property
    def secure(self) -> bool:
        """True where the channel is encrypted."""
        return self.tls or self.root_certificates is not None or self.private_key is not None


def configured(target: str | ClientConfig, **given: Any) -> ClientConfig:
    """A target with what was given beside it; None is not given.

    Raises:
        ValueError: the whole makes no sense.
    """
    said = {name: value for name, value in given.items() if value is not None}
    if isinstance(target, ClientConfig):
        return replace(target, **said) if said else target
    return ClientConfig(address=target, **said)


def is_local(address: str) -> bool:
    """Whether a gRPC target is on this machine for certain; of several addresses, each."""
    scheme, colon, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        authority, _, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest)
        if authority:  # a name server, which may give any address for any name
            return False
        address = path.removeprefix("/")
    # gRPC decodes %2C to a comma.
    return "%" not in address and all(map(_is_local_host, address.split(",")))


def _is_local_host(address: str) -> bool:
    """Of ``host`` or ``host:port``."""
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    else:
        host = address if address.count(":") > 1 else address.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
