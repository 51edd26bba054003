"""``carv serve`` as operators start it: its flags, and a log at debug that holds no prompt, no
credential and no tensor, whatever the libraries under it say.

Breaks it (tried): a debug line with the prompts in ``TeacherService.create_conditioning``.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request

import numpy as np
import pytest

from carv_client import ClientConfig, InvalidRequestError, TeacherClient
from tests.support.process import ServerProcess

PROMPT = "a turquoise torus, side view"
TOKEN = "s3cr3t-t0ken-of-the-farm"
VALUE = 0.12345679


def test_flags_and_a_log_without_content() -> None:
    flags = [
        *("--log-level", "debug", "--log-format", "json"),
        *("--metrics-address", "127.0.0.1:0", "--tracing-endpoint", "127.0.0.1:1"),
        *("--torch-threads", "1", "--evaluation-budget", "4"),
    ]
    with ServerProcess(flags) as server:
        config = ClientConfig(address=server.address, token=TOKEN)
        with TeacherClient(config) as client:
            (teacher,) = client.list_teachers()
            prompt = f"a {client.get_teacher(teacher.id).vocabulary[0]} torus, side view"
            conditioning = client.create_conditioning(prompt)
            latents = np.full((1, *teacher.event_shape), VALUE, dtype=np.float32)
            estimate = client.estimate_gradient(latents, conditioning, draws=2, seed=1)
            with pytest.raises(InvalidRequestError, match="turquoise"):
                client.create_conditioning(PROMPT)
        found = None
        for _ in range(100):
            found = re.search(r"status page on (http://127\.0\.0\.1:\d+)", server.log)
            if found and server.log.count('"carv_server.access"') >= 5:
                break
            time.sleep(0.1)
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        spent = 'carv_evaluations_total{teacher="shapes",tenant="none"}'
        assert f"{spent} {estimate.evaluations_spent:.1f}" in text
        log = server.log
    records = [json.loads(line) for line in log.splitlines()]
    assert {record["level"] for record in records} >= {"debug", "info"}
    failed = [each for each in records if each.get("code") == "INVALID_ARGUMENT"]
    assert [each["method"] for each in failed] == ["CreateConditioning"]
    assert failed[0]["teacher"] == "shapes" and len(failed[0]["trace_id"]) == 32
    for secret in ("turquoise", "side view", TOKEN, TOKEN[:10], str(VALUE), "0.1234"):
        assert secret not in log
