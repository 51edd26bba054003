"""The ``carv`` command. Each subcommand imports what it needs when it runs, so that ``carv
teachers`` works where only the light client is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from carv_client import commands as client_commands
from carv_server import config_command, profile_plot, serve_command
from carv_server.bench import command as bench_command
from carv_server.demo import command as demo_command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; the exit code."""
    parser = argparse.ArgumentParser(
        prog="carv",
        description="Variance-reduced gradients from a frozen diffusion teacher, over gRPC.",
    )
    parser.add_argument("--version", action="version", version=f"carv {version('carv')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    serve_command.register(subparsers)
    config_command.register(subparsers)
    demo_command.register(subparsers)
    bench_command.register(subparsers)
    client_commands.register(subparsers, load_plot=profile_plot.load)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
