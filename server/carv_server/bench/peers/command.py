"""``carv bench peers``: the arguments, and what can go wrong before anything is measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from carv_server.bench.arguments import (
    command_line,
    fail,
    interruptible,
    make_folders,
    minutes,
    positive,
    today,
)
from carv_server.bench.peers.registry import NETWORK_SLOWNESS, PEERS, Peer, columns, contenders

__all__ = ["register", "windows"]

_OUTPUT = Path("out/peers")
_LEAST_MINUTES = 10.0
_FULL_MINUTES = 35.0
_ROUNDS = 4
_WORKLOADS = ("simulated", "network")
_CLIENTS = (1, 4, 16)
_WARM_SECONDS = 1.0
_QUICK = (1.0, 0.4)
_START_SECONDS = 8.0  # of a contender, on average, with its end


def register(
    benches: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
) -> None:
    """Adds ``carv bench peers``."""
    parser = benches.add_parser(
        "peers",
        help="CARV and other model servers under the same denoising work",
        description="Serves the same denoiser with CARV, mosec, PyTriton, Ray Serve, LitServe and "
        "BentoML in turn, and compares each with the bare model's best batched throughput. The "
        "first run installs the others with pip, each in an environment of its own under "
        "OUTPUT/venvs (about 1.5 GB); they run in a private network with loopback alone. Linux.",
        epilog="Exit codes: 0 done, 1 the bare model failed, 2 an argument that cannot be used, "
        "130 interrupted: what was finished by then is written. A peer that cannot be installed "
        "or started is named in the tables with its error.",
    )
    add = parser.add_argument
    add("--output", type=Path, default=_OUTPUT, help=f"folder to write to (default: {_OUTPUT})")
    add("--docs", type=Path, help="also write peers.md, its figures and its data to this folder")
    add(
        "--peer",
        action="append",
        dest="peers",
        choices=[peer.id for peer in PEERS],
        help="repeatable (default: all)",
    )
    add(
        "--workload",
        action="append",
        dest="workloads",
        choices=_WORKLOADS,
        help="repeatable (default: both)",
    )
    add("--rounds", type=positive, help=f"turns of everyone (default: {_ROUNDS}, --quick 1)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="one round of short windows: does everything work"
    )
    size.add_argument(
        "--minutes",
        type=minutes(_LEAST_MINUTES),
        help=f"about how long to measure, installing left out, {_LEAST_MINUTES:g} or more "
        f"(default: {_FULL_MINUTES:g})",
    )
    parser.set_defaults(run=interruptible(_run))


def windows(length: float, rounds: int, peers: Sequence[Peer], workloads: Sequence[str]) -> float:
    """Seconds of a window on the simulated device, so that all takes about ``length`` minutes."""
    started = sum(1 + len(contenders(name, peers)) for name in workloads)
    shares = sum(
        columns(name, peers) * (NETWORK_SLOWNESS if name == "network" else 1.0)
        for name in workloads
    )
    seconds = 60.0 * length - rounds * started * _START_SECONDS
    return max(_QUICK[0], seconds / (rounds * shares * len(_CLIENTS)) - _WARM_SECONDS)


def _run(arguments: argparse.Namespace) -> int:
    if not sys.platform.startswith("linux"):
        return fail("it meters and ends processes by /proc, and needs Linux", 2, "peers")
    refused = make_folders((arguments.output, arguments.docs))
    if refused is not None:
        return fail(refused, 2, "peers")
    try:
        from carv_server.bench.peers.run import Plan, measure_in_private, prepare
        from carv_server.bench.run import machine_line
    except ModuleNotFoundError as error:
        return fail(f"{error}; install the benchmark with: pip install 'carv[demo]'", 2, "peers")
    peers: list[str] = arguments.peers or [peer.id for peer in PEERS]
    chosen = [peer for peer in PEERS if peer.id in peers]
    workloads: list[str] = arguments.workloads or list(_WORKLOADS)
    rounds: int = arguments.rounds or (1 if arguments.quick else _ROUNDS)
    length: float = arguments.minutes or _FULL_MINUTES
    seconds, warm_seconds = (
        _QUICK if arguments.quick else (windows(length, rounds, chosen, workloads), _WARM_SECONDS)
    )
    plan = Plan(
        peers=peers,
        workloads=workloads,
        clients=_CLIENTS,
        rounds=rounds,
        seconds=seconds,
        warm_seconds=warm_seconds,
        output=str(arguments.output),
        documents=None if arguments.docs is None else str(arguments.docs),
        command=command_line(),
        machine=machine_line(),
        date=today(),
    )
    return measure_in_private(prepare(plan))
