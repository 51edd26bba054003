"""The work behind BentoML: adaptive batching in one HTTP process.

    POST /predict    {"rows": [base64]}

A batched endpoint of BentoML takes JSON (its raw form is for calls between services), and a list
even of one.
"""

from __future__ import annotations

import base64

import bentoml
from work import load_work, predict_bytes

stated = load_work()


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 60, "max_concurrency": 1024},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Denoiser:
    @bentoml.api(
        batchable=True,
        max_batch_size=stated.max_batch,
        max_latency_ms=round(1e3 * stated.window_seconds),
    )
    def predict(self, rows: list[str]) -> list[str]:
        answers = predict_bytes(stated, [base64.b64decode(row) for row in rows])
        return [base64.b64encode(answer).decode("ascii") for answer in answers]
