"""``carv config check|show|hash`` and ``carv token new``."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from pathlib import Path

from carv_server.settings.arguments import add_arguments, given
from carv_server.settings.mistakes import ConfigurationError
from carv_server.settings.read import Given, read_settings
from carv_server.settings.show import hash_table, show
from carv_server.settings.variables import unknown_variables
from carv_server.teachers.hashes import weight_digests

__all__ = ["register"]

_EXIT_USAGE = 2
_TOKEN_BYTES = 32

_Subparsers = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]


def register(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    config = subparsers.add_parser("config", help="check and show the server's configuration")
    commands = config.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="report every mistake",
        description="Check a configuration as `carv serve` would, environment variables included, "
        "without loading anything. Exit code 0 where it is sound, 2 with all mistakes on standard "
        "error. Variables that begin with CARV_ and are no settings are warned of.",
    )
    check.add_argument("file", nargs="?", type=Path, metavar="FILE", help="else CARV_CONFIG")
    check.set_defaults(run=_check)
    shown = commands.add_parser(
        "show",
        help="print what is in force",
        description="Print the effective configuration as TOML, each value with where it came "
        "from; secrets are left out. Takes the flags of `carv serve`.",
    )
    add_arguments(shown)
    shown.set_defaults(run=_show)
    hashed = commands.add_parser(
        "hash",
        help="print the digests of a teacher's weights",
        description="Print sha256 for a table of [[teachers]]: the digest of every file of weights "
        "in the folder.",
    )
    hashed.add_argument("folder", type=Path, metavar="FOLDER")
    hashed.set_defaults(run=_hash)
    token = subparsers.add_parser("token", help="make bearer tokens for tenants")
    tokens = token.add_subparsers(required=True, metavar="COMMAND")
    new = tokens.add_parser(
        "new",
        help="print a fresh token and its digest",
        description="Print a fresh token, which goes to the tenant, and its SHA-256, which goes "
        "into token_sha256 of the tenant's table. Nothing is kept.",
    )
    new.set_defaults(run=_new_token)


def _check(arguments: argparse.Namespace) -> int:
    for warning in unknown_variables(os.environ):
        print(f"carv config check: warning: {warning}", file=sys.stderr)
    try:
        settings = read_settings(Given(arguments.file), os.environ)
    except ConfigurationError as error:
        return _complain("config check", str(error))
    tenants = "no tenants" if settings.tenants is None else f"{len(settings.tenants)} tenants"
    print(f"sound: {len(settings.teachers)} teachers, {tenants}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    try:
        settings = read_settings(given(arguments), os.environ)
    except ConfigurationError as error:
        return _complain("config show", str(error))
    sys.stdout.write(show(settings))
    return 0


def _hash(arguments: argparse.Namespace) -> int:
    try:
        digests = weight_digests(arguments.folder)
    except OSError as error:
        return _complain("config hash", f"{error.filename or arguments.folder}: {error.strerror}")
    if not digests:
        return _complain(
            "config hash",
            f"{arguments.folder} holds no .safetensors, mixture.json or simulated.json",
        )
    print(hash_table(digests))
    return 0


def _new_token(arguments: argparse.Namespace) -> int:
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    print(f"token         {token}")
    print(f"token_sha256  {hashlib.sha256(token.encode()).hexdigest()}")
    return 0


def _complain(command: str, what: str) -> int:
    print(f"carv {command}: {what}", file=sys.stderr)
    return _EXIT_USAGE
