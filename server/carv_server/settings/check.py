"""What single values cannot tell: settings that contradict each other, and files that are not
there."""

from __future__ import annotations

from pathlib import Path

from carv_server.settings.addresses import is_public
from carv_server.settings.mistakes import Mistakes
from carv_server.settings.observability import MetricsConfig, TracingConfig, check_installed
from carv_server.settings.result import Settings
from carv_server.settings.table import PUBLIC_WORDS
from carv_server.settings.teachers import check_teachers
from carv_server.tls import CertificateError, TlsConfig, read_certificates

__all__ = ["check_whole"]


def check_whole(settings: Settings, mistakes: Mistakes) -> None:
    """Add what is wrong between settings, and with what they name."""
    check_teachers(settings.teachers, mistakes)
    _check_tenants(settings, mistakes)
    _check_tls(settings, mistakes)
    _check_addresses(settings, mistakes)
    _check_replicas(settings, mistakes)
    _check_observability(settings, mistakes)


def _check_tenants(settings: Settings, mistakes: Mistakes) -> None:
    ids = {tenant.id for tenant in settings.tenants or ()}
    for teacher in settings.teachers:
        for tenant in sorted(teacher.tenants or ()):
            # A tenants file may name them later on.
            if tenant not in ids and not settings.text("tenants_file"):
                mistakes.add(f"teacher {teacher.id!r}.tenants", f"there is no tenant {tenant!r}")
    if any(tenant.spiffe_ids for tenant in settings.tenants or ()) and not (
        settings.text("tls.certificate") and settings.requires_client_certificate
    ):
        mistakes.add(
            "tenants",
            "spiffe_ids need [tls] with certificate, private_key and client_ca, and client "
            "certificates required",
        )


def _check_tls(settings: Settings, mistakes: Mistakes) -> None:
    certificate, key = settings.text("tls.certificate"), settings.text("tls.private_key")
    authority = settings.text("tls.client_ca")
    if bool(certificate) != bool(key):
        missing = "private_key" if certificate else "certificate"
        mistakes.add(f"tls.{missing}", "must be set: certificate and private_key go together")
    if (authority or settings.requires_client_certificate) and not (certificate and key):
        mistakes.add("tls.client_ca", "needs certificate and private_key too")
    if settings.requires_client_certificate and not authority:
        mistakes.add("tls.require_client_certificate", "needs client_ca, to check them against")
    there = True
    named = (("certificate", certificate), ("private_key", key), ("client_ca", authority))
    for name, file in named:
        if file and not Path(file).is_file():
            mistakes.add(f"tls.{name}", f"{file} is not there")
            there = False
    if certificate and key and there:
        try:
            # As the server itself will.
            read_certificates(
                TlsConfig(Path(certificate), Path(key), Path(authority) if authority else None)
            )
        except CertificateError as error:
            mistakes.add(f"tls.{error.field}", str(error))


def _check_addresses(settings: Settings, mistakes: Mistakes) -> None:
    words = settings.text("server.public_without_credentials")
    if words and words != PUBLIC_WORDS:
        mistakes.add("server.public_without_credentials", f'must say "{PUBLIC_WORDS}", or nothing')
    elif not words and is_public(settings.text("server.address")):
        address = settings.text("server.address")
        encrypted = bool(settings.text("tls.certificate"))
        if settings.tenants is None and not settings.requires_client_certificate:
            mistakes.add(
                "server.address",
                f"{address} can be reached from other machines, and callers need no credentials: "
                "name tenants or a client_ca, listen on 127.0.0.1, or set "
                f'public_without_credentials = "{PUBLIC_WORDS}"',
            )
        elif not encrypted:
            mistakes.add(
                "server.address",
                f"{address} can be reached from other machines, and tokens would travel there in "
                "the clear: set tls.certificate and tls.private_key, listen on 127.0.0.1, or set "
                f'public_without_credentials = "{PUBLIC_WORDS}"',
            )
    addresses: dict[str, str] = {}
    for path in ("server.address", "server.health_address", "metrics.address"):
        address = settings.text(path)
        if address and not address.endswith(":0"):
            if address in addresses:
                mistakes.add(path, f"{address} is that of {addresses[address]} too")
            addresses[address] = path


def _check_replicas(settings: Settings, mistakes: Mistakes) -> None:
    most = settings.values["ray.max_replicas"]
    if most is not None and settings.integer("ray.max_replicas") < settings.integer(
        "ray.min_replicas"
    ):
        mistakes.add("ray.max_replicas", f"{most}; must be min_replicas or more")
    if settings.text("server.replicas") == "ray":
        if settings.text("server.device") not in ("auto", "cpu", "cuda"):
            mistakes.add("server.device", "Ray chooses the GPU; say auto, cpu or cuda")
        for teacher in settings.teachers:
            if teacher.device is not None:
                where = f"teacher {teacher.id!r}.device"
                mistakes.add(where, "Ray chooses the GPU; leave it out")


def _check_observability(settings: Settings, mistakes: Mistakes) -> None:
    try:
        MetricsConfig(settings.text("metrics.address"))
    except ValueError as error:
        mistakes.add("metrics.address", str(error))
    try:
        check_installed(
            TracingConfig(
                settings.text("tracing.endpoint"), settings.number("tracing.sample_ratio")
            )
        )
    except ValueError as error:
        mistakes.add("tracing.endpoint", str(error))
