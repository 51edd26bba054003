"""The work behind LitServe: FastAPI on uvicorn, one worker process, its queue over ZeroMQ.

    POST /predict

The annotation of ``decode_request`` becomes that of the FastAPI endpoint, which takes raw bytes
then; LitServe's own parsing would be JSON. No ``from __future__ import annotations``: LitServe
reads annotations as objects.
"""

from typing import Annotated, Any

import litserve
from fastapi import Body
from starlette.responses import Response
from work import load_work, predict_bytes, served_port


class Denoiser(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.work = load_work()

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        return predict_bytes(self.work, x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Any:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    stated = load_work()
    api = Denoiser(max_batch_size=stated.max_batch, batch_timeout=stated.window_seconds)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=1, timeout=60, fast_queue=True
    )
    server.run(
        host="127.0.0.1", port=served_port(), num_api_servers=1, log_level="warning",
        generate_client_file=False, access_log=False,
    )  # fmt: skip
