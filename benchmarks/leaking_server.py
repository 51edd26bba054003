"""``benchmarks.measured_server`` with a leak: it keeps so many bytes of every answer as the
environment says. The control of ``benchmarks.soak``."""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks import measured_server
from carv_server import service

_KEPT: list[bytearray] = []


def _leaking(method: Any) -> Any:
    size = int(os.environ["CARV_BENCHMARK_LEAK_BYTES"])

    async def call(*arguments: Any) -> Any:
        _KEPT.append(bytearray(os.urandom(size)))
        return await method(*arguments)

    return call


if __name__ == "__main__":
    service.TeacherService.estimate_gradient = _leaking(service.TeacherService.estimate_gradient)
    sys.exit(measured_server.main())
