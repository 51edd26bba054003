"""One object for all that operators see: calls report to it, pages and exporters read from it."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import secrets
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from carv.errors import STATUS_CODES, Reason
from carv_server.history import DrawHistories
from carv_server.observability.access_log import AccessLog
from carv_server.observability.call import Metadata, ObservedCall, Observers
from carv_server.observability.collector import ServerCollector, ServerFacts
from carv_server.observability.counts import RequestCounts, TeacherCounts
from carv_server.observability.http import HttpServer, Page, Reply
from carv_server.observability.labels import OTHER, STREAM_REQUEST, TenantLabels, method_label
from carv_server.observability.rates import READ_EVERY_SECONDS, Rates
from carv_server.observability.status_page import STATUS_HEADERS, status_html
from carv_server.observability.status_view import StatusView, status_view, totals
from carv_server.observability.watched import Encoder, Quota, Store, WatchedTeacher
from carv_server.scheduler import Scheduler
from carv_server.scheduling.config import SchedulerConfig
from carv_server.settings.observability import MetricsConfig, TracingConfig, check_installed

if TYPE_CHECKING:
    from carv_server.observability.tracing import Tracing

__all__ = ["Observability"]

_UNAUTHENTICATED = STATUS_CODES[Reason.UNAUTHENTICATED]


class Observability:
    """Lives on one event loop. Counting needs nothing further; ``start`` opens the metrics port
    where there is an address for it.

    Args:
        tenants: configured ids; ``know_tenants`` takes those of a new configuration.
        quota: of a tenant, for the status page.
        clock: the scheduler's.
        new_id: a fresh request id.

    Raises:
        ValueError: tracing is asked for and not installed.
    """

    def __init__(
        self,
        metrics: MetricsConfig | None = None,
        tracing: TracingConfig | None = None,
        tenants: Iterable[str] = (),
        quota: Callable[[str], Quota | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._clock = clock
        self._quota = quota
        self._began = clock()
        self._tenants = TenantLabels(tenants)
        self._requests = RequestCounts()
        access = AccessLog(clock)
        self._observers = Observers(self._requests, access, new_id)
        self._tracing = None
        if tracing is not None and tracing.endpoint:
            self._tracing = _open_tracing(tracing, clock, new_id())
            self._observers.tracer = self._tracing
        self._facts = ServerFacts(
            build=(
                _version("carv"),
                platform.python_version(),
                _version("grpcio"),
                _version("torch"),
            ),
            spans=self._spans,
            suppressed_lines=lambda: access.suppressed,
        )
        self._rates = Rates(lambda: totals(self._requests, self._facts.teachers), clock)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(ServerCollector(self._facts, self._requests, self._tenants))
        ProcessCollector(namespace="carv", registry=self.registry)
        address = "" if metrics is None else metrics.address
        pages: dict[str, Page] = {
            "/": lambda accept: Reply(302, b"", headers={"Location": "/status"}),
            "/status": self._status,
            "/metrics": self._metrics,
            "/livez": lambda accept: Reply(200, b"alive\n"),
            "/readyz": self._ready,
        }
        self._http = HttpServer(address, pages) if address else None
        self._reader: asyncio.Task[None] | None = None

    @property
    def metrics_address(self) -> str:
        """host:port of the metrics port; "" without one."""
        return "" if self._http is None else self._http.address

    def begin(self, method: str, tenant: str, metadata: Metadata) -> ObservedCall:
        """A call has arrived; the task that calls this serves it.

        Args:
            tenant: its id, or "" without tenants.
        """
        call = ObservedCall(
            self._observers, method_label(method), self._tenants(tenant), tenant, metadata
        )
        call.enter()
        return call

    def denied(self, method: str) -> None:
        """A call of /package.Service/Method showed no valid credential: it ended at the door."""
        label = method_label(method.rpartition("/")[2])
        self._requests.begin(label)
        self._requests.end(label, _UNAUTHENTICATED, OTHER, None, Reason.UNAUTHENTICATED.value)

    @staticmethod
    def begin_on_stream(stream: ObservedCall, number: int) -> ObservedCall:
        """A request has arrived on a stream."""
        return stream.on_stream(STREAM_REQUEST, number)

    def counts(self, teacher_id: str) -> TeacherCounts:
        """Those of a registered teacher."""
        return self._observers.teachers.setdefault(teacher_id, TeacherCounts())

    def watch(
        self,
        teacher_id: str,
        scheduler: Scheduler,
        limits: SchedulerConfig,
        histories: DrawHistories,
        latents: Store,
        encoder: Encoder,
        wanted_replicas: Callable[[], int],
        device: str,
    ) -> None:
        """Show a teacher, whose scheduler reports to ``counts``.

        Args:
            wanted_replicas, device: as ``WatchedTeacher``.
        """
        self._facts.teachers.append(
            WatchedTeacher(
                teacher_id,
                self.counts(teacher_id),
                scheduler.snapshot,
                limits,
                histories,
                latents,
                encoder,
                wanted_replicas,
                device,
            )
        )

    def watch_conditionings(self, store: Store) -> None:
        self._facts.conditionings = store

    def know_tenants(self, tenants: Iterable[str]) -> None:
        """Give the tenants of a new configuration labels of their own."""
        self._tenants.know(tenants)

    def set_state(self, *, ready: bool, draining: bool = False) -> None:
        self._facts.ready, self._facts.draining = ready, draining

    async def start(self) -> None:
        """Open the metrics port.

        Raises:
            ListenError: its address cannot be bound.
        """
        if self._http is not None:
            await self._http.start()
            self._reader = asyncio.create_task(self._read_totals())

    async def stop(self) -> None:
        """Close the port, and hand over the spans that are left, within some seconds."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._http is not None:
            await self._http.stop()
        if self._tracing is not None:
            await self._tracing.close()

    def view(self) -> StatusView:
        """What the status page shows."""
        return status_view(
            self._facts,
            self._requests,
            self._tenants,
            self._rates,
            uptime_seconds=self._clock() - self._began,
            quota=self._quota,
        )

    async def _read_totals(self) -> None:
        while True:
            self._rates.take()
            await asyncio.sleep(READ_EVERY_SECONDS)

    def _spans(self) -> tuple[int, int]:
        tracing = self._tracing
        return (0, 0) if tracing is None else (tracing.exported, tracing.dropped)

    def _metrics(self, accept: str) -> Reply:
        encode, content_type = choose_encoder(accept)
        return Reply(200, encode(self.registry), content_type)

    def _status(self, accept: str) -> Reply:
        html = status_html(self.view())
        return Reply(200, html.encode(), "text/html; charset=utf-8", STATUS_HEADERS)

    def _ready(self, accept: str) -> Reply:
        facts = self._facts
        if facts.ready and not facts.draining:
            return Reply(200, b"ready\n")
        return Reply(503, b"draining\n" if facts.draining else b"starting\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _open_tracing(config: TracingConfig, clock: Callable[[], float], instance: str) -> Tracing:
    check_installed(config)
    from carv_server.observability.tracing import open_tracing

    return open_tracing(config, _version("carv"), clock, instance)
