"""Credentials of the light subcommands: a token from the environment or a file, certificates from
files. Never from a flag, which other users of the machine could read."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from carv_client._config import ClientConfig
from carv_client._errors import invalid

__all__ = ["TOKEN_VARIABLE", "add_credentials", "config_of"]

TOKEN_VARIABLE = "CARV_TOKEN"


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with the tenant's token (default: the variable {TOKEN_VARIABLE})",
    )
    parser.add_argument(
        "--tls", action="store_true", help="encrypt; the flags for PEM files below imply it"
    )
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="roots to trust")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="the client's own")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="key of --tls-certificate")


def config_of(arguments: argparse.Namespace) -> ClientConfig:
    """Where to call, and with what.

    Raises:
        UnsentRequestError: a file cannot be read, or the whole makes no sense.
    """
    token = _read(arguments.token_file, "--token-file")
    text = os.environ.get(TOKEN_VARIABLE) if token is None else token.decode(errors="replace")
    try:
        return ClientConfig(
            address=arguments.address,
            timeout_seconds=arguments.timeout,
            token=(text or "").strip() or None,
            tls=arguments.tls,
            root_certificates=_read(arguments.tls_ca, "--tls-ca"),
            certificate_chain=_read(arguments.tls_certificate, "--tls-certificate"),
            private_key=_read(arguments.tls_key, "--tls-key"),
        )
    except ValueError as error:
        raise invalid("credentials", str(error)) from None


def _read(file: Path | None, flag: str) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise invalid(flag, f"{file} cannot be read: {error.strerror}") from None
