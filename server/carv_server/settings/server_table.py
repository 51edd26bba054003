"""The settings of [server] and [tls]; ``table.py`` has the others and all together."""

from __future__ import annotations

from carv import DEFAULT_MAX_MESSAGE_BYTES
from carv_server.settings.kinds import Choice, Flag, Number, Text
from carv_server.settings.setting import Setting

__all__ = ["PUBLIC_WORDS", "SERVER_SETTINGS"]

PUBLIC_WORDS = "anyone who reaches this address may use it"
"""What ``server.public_without_credentials`` must say."""

SERVER_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "server",
        "address",
        Text(),
        "127.0.0.1:50051",
        "host:port to listen on; port 0 takes a free one",
    ),
    Setting(
        "server",
        "health_address",
        Text(),
        "",
        "host:port of a plaintext listener for grpc.health.v1 alone, for probes where TLS is on",
    ),
    Setting(
        "server",
        "public_without_credentials",
        Text(),
        "",
        f'say "{PUBLIC_WORDS}" to listen beyond loopback without credentials, or with tokens '
        "but no TLS",
    ),
    Setting("server", "drain_seconds", Number(0), 30, "time for in-flight requests after SIGTERM"),
    Setting(
        "server",
        "connection_age_minutes",
        Number(0, 10080, auto=True),
        None,
        "time after which a connection is ended, in good order: clients connect anew, show their "
        "certificate again and find servers that were added; 0: never; auto: 30 where TLS is on, "
        "else 0",
    ),
    Setting(
        "server",
        "connection_grace_seconds",
        Number(1, 86400),
        600,
        "time for calls on such a connection; never below drain_seconds",
    ),
    Setting(
        "server",
        "max_message_mib",
        Number(1, 1024),
        DEFAULT_MAX_MESSAGE_BYTES >> 20,
        "largest request or reply, MiB",
    ),
    Setting("server", "device", Text(), "auto", "cpu, cuda, cuda:N or auto"),
    Setting(
        "server",
        "dtype",
        Choice(("auto", "float32", "float16", "bfloat16")),
        "auto",
        "what networks compute in; auto is what the device is good at, and its error against "
        "float32 is logged",
    ),
    Setting(
        "server",
        "compile",
        Flag(),
        False,
        "compile networks by torch.compile, for batch sizes of powers of two; takes minutes "
        "before the server is ready",
    ),
    Setting(
        "server",
        "cuda_graphs",
        Flag(),
        False,
        "capture forwards of those batch sizes as CUDA graphs",
    ),
    Setting(
        "server",
        "torch_threads",
        Number(0, auto=True),
        None,
        "CPU threads of one forward; auto leaves one core to the rest, 0 leaves it to torch",
    ),
    Setting(
        "server",
        "evaluation_budget",
        Number(1, auto=True),
        None,
        "evaluations in one microbatch; auto measures it before the server is ready",
    ),
    Setting(
        "server",
        "replicas",
        Choice(("in-process", "ray")),
        "in-process",
        "where the teachers are: one replica of each in this process, or actors of a Ray cluster "
        "(pip install 'carv[ray]')",
    ),
    Setting(
        "tls",
        "certificate",
        Text(path=True),
        "",
        "PEM certificate chain of the server, its own first; turns TLS on",
        "tls_certificate",
    ),
    Setting(
        "tls", "private_key", Text(path=True), "", "PEM key of the certificate", "tls_private_key"
    ),
    Setting(
        "tls",
        "client_ca",
        Text(path=True),
        "",
        "PEM certificates of the authorities that clients' certificates are checked against",
        "tls_client_ca",
    ),
    Setting(
        "tls",
        "require_client_certificate",
        Flag(auto=True),
        None,
        "refuse connections without a client certificate; by default where client_ca is set",
        "tls_require_client_certificate",
    ),
    Setting(
        "tls",
        "reload_seconds",
        Number(0, whole=False, above=True),
        10.0,
        "within this time a change of the files is taken, once they have stood for half of it",
        "tls_reload_seconds",
    ),
)
