"""Requests that are odd in a way worth keeping: each is answered or refused as any other.

``corpus/<Method>-<what>.textproto`` is one request, with HANDLE for a conditioning that is there;
``corpus/<what>.hex`` are bytes, sent to every method. What a generated request has once broken goes
here (hypothesis prints it). Broken by a check that raises: ``decode`` in validation/checks.py
without its ``except ValueError``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from tests.fuzz.calls import METHODS, Fuzzed, message_of, outcome

CORPUS = Path(__file__).parent / "corpus"
STRUCTURED = sorted(path.name for path in CORPUS.glob("*.textproto"))
GARBAGE = sorted(path.name for path in CORPUS.glob("*.hex"))


@pytest.mark.parametrize("name", STRUCTURED)
def test_kept_requests(fuzzed: Fuzzed, name: str) -> None:
    method = name.partition("-")[0]
    text = (CORPUS / name).read_text().replace("HANDLE", fuzzed.handles[0])
    outcome(fuzzed, method, text_format.Parse(text, message_of(method)()))


@pytest.mark.parametrize("name", GARBAGE)
def test_kept_bytes(fuzzed: Fuzzed, name: str) -> None:
    data = bytes.fromhex((CORPUS / name).read_text())
    for method in METHODS:
        outcome(fuzzed, method, data)


def test_the_corpus_is_there() -> None:
    assert len(STRUCTURED) >= 30 and len(GARBAGE) >= 15
