"""The contenders in turn, round after round: bare model, CARV, gRPC alone, peer, peer, ...

One contender runs at a time, started for its turn and ended after it, so that an idle server's
housekeeping costs no other contender anything. What fails is left out from then on, with its
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from carv_server.bench.load.bare import Bare, Forwards, measure_bare
from carv_server.bench.load.flow import Load
from carv_server.bench.load.measure import DriverFailed, measure
from carv_server.bench.peers.contender import Ask, Running, StartFailed, running_carv, running_peer
from carv_server.bench.peers.registry import Peer, contenders
from carv_server.bench.peers.workload import Workload
from carv_server.demo.process import ServerFailed

__all__ = ["Lap", "Reading", "Site", "run_round"]

_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Site:
    """Where contenders live, and what is said on the way.

    Attributes:
        folder: for payloads and logs.
        environments: the peers' virtual environments.
        advance: books seconds of work done.
    """

    folder: Path
    environments: Path
    say: Callable[[str], None]
    advance: Callable[[float], None]


@dataclass(frozen=True)
class Reading:
    """One window.

    Attributes:
        bare: rows a second of the bare model in the same round.
        cpu: processor seconds of the server a request.
        median, tail: latency, seconds; the tail is the 99th percentile.
        foreign_cores: that other work on the machine took meanwhile.
        failures: requests that failed, and what the most frequent failure said.
    """

    workload: str
    contender: str
    round: int
    clients: int
    rate: float
    bare: float
    cpu: float
    client_cpu: float
    median: float
    tail: float
    foreign_cores: float
    failures: int
    failure: str = ""

    @property
    def share(self) -> float:
        return self.rate / self.bare


@dataclass
class Lap:
    """Results over rounds: readings, the bare model's, and who was left out and why, by workload
    and contender."""

    readings: list[Reading] = field(default_factory=list[Reading])
    bare: dict[str, list[Forwards]] = field(default_factory=dict[str, list[Forwards]])
    left_out: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])


def run_round(
    lap: Lap,
    workload: Workload,
    peers: Sequence[Peer],
    site: Site,
    number: int,
    seconds: float,
    warm_seconds: float,
) -> None:
    """One turn of everyone; readings are added to ``lap`` as they come.

    Raises:
        BareFailed: without the bare model there is nothing to compare with.
    """
    seconds, warm_seconds = seconds * workload.slowness, warm_seconds * workload.slowness
    site.say(f"{workload.id} {number + 1}: bare model")
    bare = measure_bare(Bare(_SIZES, seconds, work=workload.work()))
    lap.bare.setdefault(workload.id, []).append(bare)
    answer = workload.answer()

    def carv() -> AbstractContextManager[Running]:
        return running_carv(workload, answer, site.folder / f"carv-{workload.id}.log")

    def starter(peer: Peer) -> Callable[[], AbstractContextManager[Running]]:
        log = site.folder / f"{peer.id}-{workload.id}.log"
        home = site.folder / "home" / peer.id
        return lambda: running_peer(peer, workload, answer, site.environments, home, log)

    turns = [
        ("CARV", carv),
        *((peer.title, starter(peer)) for peer in contenders(workload.id, peers)),
    ]
    for title, start in turns:
        if (workload.id, title) in lap.left_out:
            continue
        site.say(f"{workload.id} {number + 1}: {title}")
        try:
            with start() as running:
                for ask in running.asks:
                    for clients in workload.clients:
                        load = _load(ask, clients, site.folder, seconds, warm_seconds, number)
                        lap.readings.append(
                            _read(load, ask, running, workload, number, bare.rows_per_second)
                        )
                        site.advance(seconds + warm_seconds)
        except (StartFailed, ServerFailed, DriverFailed) as error:
            lap.left_out[workload.id, title] = " ".join(str(error).split())


def _load(
    ask: Ask, clients: int, folder: Path, seconds: float, warm_seconds: float, seed: int
) -> Load:
    payload = folder / "payload"
    payload.write_bytes(ask.payload)
    return Load(
        ask.target, {"row": str(payload)}, clients, seconds, warm_seconds=warm_seconds, seed=seed
    )


def _read(
    load: Load, ask: Ask, running: Running, workload: Workload, number: int, bare: float
) -> Reading:
    metered = measure([load], running.pids)
    observed = metered.first
    failures = dict(observed.failures)
    return Reading(
        workload=workload.id,
        contender=ask.title,
        round=number,
        clients=load.clients,
        rate=observed.rate,
        bare=bare,
        cpu=metered.server_cpu_per_request,
        client_cpu=observed.client_cpu_seconds / max(1, observed.requests),
        median=observed.quantile(0.5),
        tail=observed.quantile(0.99),
        foreign_cores=metered.foreign_cores,
        failures=sum(failures.values()),
        failure=max(failures, key=lambda said: failures[said]) if failures else "",
    )
