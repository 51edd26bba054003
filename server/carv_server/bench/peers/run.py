"""The benchmark from end to end, in two processes.

The first installs the peers, which needs a package index; the second, a child, moves to a private
network where loopback is all there is, and measures there.

    python -m carv_server.bench.peers.run < plan.json
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from carv_server.bench.arguments import interrupt_once
from carv_server.ending import on_sigterm

__all__ = ["Plan", "measure_in_private", "prepare"]


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        peers: ids, in the order of their turns.
        workloads: "simulated", "network".
        rounds: turns of everyone.
        seconds, warm_seconds: of a window on the simulated device.
        documents: folder that gets ``peers.md``, or None.
        command, machine, date: for the tables.
        not_installed: why, by peer id.
    """

    peers: Sequence[str]
    workloads: Sequence[str]
    clients: Sequence[int]
    rounds: int
    seconds: float
    warm_seconds: float
    output: str
    documents: str | None
    command: str
    machine: str
    date: str
    not_installed: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def environments(self) -> Path:
        return Path(self.output) / "venvs"


def prepare(plan: Plan) -> Plan:
    """Installs the peers; the plan, with what could not be installed."""
    from carv_server.bench.peers.install import InstallFailed, install
    from carv_server.bench.peers.registry import PEERS

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    failed: dict[str, str] = {}
    for peer in PEERS:
        if peer.id in plan.peers:
            try:
                install(peer, plan.environments, say)
            except InstallFailed as error:
                failed[peer.id] = f"not installed: {error}"
                say(f"{peer.title} cannot be installed: {error}")
    return replace(plan, not_installed=failed)


def measure_in_private(plan: Plan) -> int:
    """Runs the measuring child; its exit code, 130 where it was interrupted."""
    child = subprocess.Popen(
        [sys.executable, "-m", "carv_server.bench.peers.run"], stdin=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    with on_sigterm(lambda number, frame: child.terminate()):
        with suppress(BrokenPipeError):  # it has been ended already
            json.dump(asdict(plan), child.stdin)
            child.stdin.close()
        while True:
            try:
                code = child.wait()
                return 130 if code == -signal.SIGTERM else code  # ahead of its own handler
            except KeyboardInterrupt:
                # The terminal told the child too: it ends its servers and writes what it has.
                continue


def _measure(plan: Plan, *, private: bool, why: str) -> int:
    # After the network has changed: these start threads.
    from carv_server.bench.load.bare import BareFailed
    from carv_server.bench.load.book import Book
    from carv_server.bench.peers.registry import PEERS, columns
    from carv_server.bench.peers.report import write_document, write_results
    from carv_server.bench.peers.rounds import Lap, Site, run_round
    from carv_server.bench.peers.workload import network, simulated
    from carv_server.bench.tables import Origin
    from carv_server.demo.progress import Progress

    started = time.monotonic()
    output = Path(plan.output)
    book = Book("peers", output, Origin(plan.command, plan.machine, plan.date))
    peers = [peer for peer in PEERS if peer.id in plan.peers]
    workloads = [
        network(output, plan.clients, _site_packages())
        if name == "network"
        else simulated(output, plan.clients)
        for name in plan.workloads
    ]
    lap = Lap()
    for workload in workloads:
        for peer in peers:
            reason = plan.not_installed.get(peer.id)
            if reason is None and not private and not peer.loopback_only:
                reason = f"it listens on every interface, and a private network is refused: {why}"
            if reason is not None:
                lap.left_out[workload.id, peer.title] = reason
    windows = sum(columns(each.id, peers) * each.slowness for each in workloads)
    windows *= plan.rounds * len(plan.clients)
    expected = windows * (plan.seconds + plan.warm_seconds)
    code = 0
    with Progress(expected) as progress:
        site = Site(output, plan.environments, progress.stage, progress.advance)
        try:
            for number in range(plan.rounds):
                for workload in workloads:
                    run_round(lap, workload, peers, site, number, plan.seconds, plan.warm_seconds)
                    write_results(book, lap, workloads, peers)
        except KeyboardInterrupt:
            code = 130
        except BareFailed as error:
            print(error, file=sys.stderr)
            code = 1
        finally:
            write_results(book, lap, workloads, peers)
            book.write_summary(time.monotonic() - started, finished=code == 0)
    if code == 130:
        print(f"interrupted; what was finished is in {output / 'summary.md'}", file=sys.stderr)
        return code
    if plan.documents is not None:
        write_document(book, Path(plan.documents), workloads)
    for target in book.targets:
        print(f"{'met    ' if target.met else 'NOT MET'} {target.claim}: {target.measured}")
    for (workload, title), reason in lap.left_out.items():
        print(f"left out ({workload}): {title}: {reason}")
    print(f"wrote {output / 'summary.md'}")
    return code


def _site_packages() -> str:
    """Where this environment keeps torch."""
    import torch

    return str(Path(torch.__file__).resolve().parents[1])


def main() -> int:
    from carv_server.bench.peers.private_network import enter_private_network

    stated: dict[str, Any] = json.load(sys.stdin)
    plan = Plan(**stated)
    private, why = True, ""
    try:
        enter_private_network()
    except OSError as error:
        private, why = False, str(error)
    with on_sigterm(interrupt_once):
        return _measure(plan, private=private, why=why)


if __name__ == "__main__":
    sys.exit(main())
