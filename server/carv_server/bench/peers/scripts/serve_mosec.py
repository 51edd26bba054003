"""The work behind mosec: a Rust HTTP front, raw bytes, one worker process.

POST /inference
"""

from __future__ import annotations

import sys

from mosec import Server, Worker
from work import load_work, predict_bytes, served_port


class Denoiser(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.work = load_work()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return predict_bytes(self.work, data)


if __name__ == "__main__":
    stated = load_work()
    # mosec reads its settings from argv. The request timeout is its largest use of a queue.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(served_port()), "--timeout", "60000"]
    sys.argv += ["--log-level", "warning"]
    server = Server()
    server.append_worker(
        Denoiser,
        num=1,
        max_batch_size=stated.max_batch,
        max_wait_time=round(1e3 * stated.window_seconds),
    )
    server.run()
