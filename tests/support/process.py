"""A ``carv serve`` process on a free loopback port."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType

__all__ = ["ServerProcess"]

_START_SECONDS = 120.0


class ServerProcess:
    """Context manager: started and serving inside, killed if need be outside.

    Attributes:
        address: host:port.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "carv_server", "serve", "--address", "127.0.0.1:0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._serving = threading.Event()
        self.address = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        self._serving.wait(_START_SECONDS)
        if not self.address:
            self._process.kill()
            raise RuntimeError(f"the server did not start:\n{self.log}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()

    @property
    def process(self) -> subprocess.Popen[str]:
        return self._process

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)
            found = re.search(r"serving .* on (127\.0\.0\.1:\d+)", line)
            if found:
                self.address = found[1]
                self._serving.set()
        self._serving.set()
