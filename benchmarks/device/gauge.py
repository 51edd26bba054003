"""Readings of the device while something runs on it, by NVML."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Gauge", "Readings"]

_EVERY_SECONDS = 0.05


@dataclass(frozen=True)
class Readings:
    """Medians; None where there is no NVML.

    Attributes:
        busy: share of time in which a kernel ran, percent, as NVML has it.
    """

    busy: float | None = None
    watts: float | None = None
    clock_mhz: float | None = None


class Gauge:
    """Reads in a thread of its own between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self._read = _reader()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rows: list[tuple[float, float, float]] = []

    def start(self) -> None:
        self._stop.clear()
        self._rows = []
        if self._read is not None:
            self._thread = threading.Thread(target=self._run, args=(self._read,), daemon=True)
            self._thread.start()

    def stop(self) -> Readings:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self._rows:
            return Readings()
        return Readings(*(statistics.median(column) for column in zip(*self._rows, strict=True)))

    def _run(self, read: Callable[[], tuple[float, float, float]]) -> None:
        while not self._stop.is_set():
            self._rows.append(read())
            time.sleep(_EVERY_SECONDS)


def _reader() -> Callable[[], tuple[float, float, float]] | None:
    try:
        import pynvml  # pyright: ignore[reportMissingImports] # of nvidia-ml-py

        nvml: Any = pynvml
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # noqa: BLE001 - no such library, no driver, no device: no readings
        return None

    def read() -> tuple[float, float, float]:
        return (
            float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            1e-3 * nvml.nvmlDeviceGetPowerUsage(handle),
            float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        )

    return read
