"""``carv serve``: settings to a running server."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from contextlib import ExitStack

from carv_server.ending import ended_by_signals, leave
from carv_server.settings.arguments import add_arguments, given
from carv_server.settings.mistakes import ConfigurationError
from carv_server.settings.observability import LogConfig
from carv_server.settings.read import read_settings
from carv_server.settings.variables import unknown_variables

__all__ = ["register"]

_log = logging.getLogger(__name__)

_EXIT_USAGE = 2
_EXIT_ADDRESS = 3


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``carv serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="serve teachers over gRPC",
        description="Serve frozen diffusion teachers over gRPC until SIGTERM or SIGINT; in-flight "
        "requests then finish and new ones are refused.",
        epilog="Every flag can be given as an environment variable: --evaluation-budget is "
        "CARV_EVALUATION_BUDGET; CARV_TEACHER takes several registrations separated by ';'. All "
        "settings are in docs/configuration.md. "
        "Exit codes: 0 clean stop, 2 bad configuration, 3 the address cannot be bound.",
    )
    add_arguments(parser)
    parser.set_defaults(run=_run)


@ended_by_signals()
def _run(arguments: argparse.Namespace) -> int:
    try:
        settings = read_settings(given(arguments), os.environ)
    except ConfigurationError as error:
        return _complain(str(error))
    from carv_server.observability.logs import configure_logging

    configure_logging(LogConfig(settings.text("log.level"), settings.text("log.format")))
    for warning in unknown_variables(os.environ):
        _log.warning("%s", warning)
    # torch and diffusers take seconds to import: not before the settings are known good.
    from carv_server.configured import server_config
    from carv_server.host import event_loop_factory
    from carv_server.observability.http import ListenError
    from carv_server.pools import ray_pools
    from carv_server.prepare import load_teachers
    from carv_server.replicas.protocol import ReplicaStartError
    from carv_server.serve import serve_until_signalled
    from carv_server.tls import CertificateError

    with ExitStack() as stack:
        try:
            config = server_config(settings)
            teachers = load_teachers(config) if config.ray is None else {}
            pools = {} if config.ray is None else stack.enter_context(ray_pools(config))
        except (ValueError, RuntimeError, ReplicaStartError) as error:
            return _complain(str(error))
        try:
            with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
                ended = runner.run(serve_until_signalled(config, teachers, pools))
        except (ReplicaStartError, CertificateError) as error:
            return _complain(str(error))
        except ListenError as error:
            print(f"carv serve: {error}", file=sys.stderr)
            return _EXIT_ADDRESS
        except RuntimeError as error:
            if "bind" not in str(error).lower():
                raise
            where = config.address
            if config.health_address and config.health_address in str(error):
                where = config.health_address
            _complain(f"cannot listen on {where}: {error}")
            return _EXIT_ADDRESS
    if not ended:
        leave(0)
    return 0


def _complain(what: str) -> int:
    print(f"carv serve: {what}", file=sys.stderr)
    return _EXIT_USAGE
