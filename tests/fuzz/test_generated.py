"""Whatever comes, structured or garbage: a reason of the catalogue for bad requests, no crash, and
nothing INTERNAL or UNKNOWN. A few hundred requests in ``make test``, 10,000 of each kind in ``make
test-statistics``; always the same ones. Broken by any check that raises what is no RequestError:
try a plain ``ValueError`` in place of ``violations.add`` for an unknown sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.calls import METHODS, Fuzzed, good_requests, outcome
from tests.fuzz.strategies import garbage, requests

# Of the others there are not many: ListTeachers has no fields and GetTeacher one.
RICH = [method for method in METHODS if method not in ("ListTeachers", "GetTeacher")]
FEW, MANY = 40, -(-10_000 // len(RICH))
AMOUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


def _run(strategy: st.SearchStrategy[Any], amount: int, check: Callable[[Any], None]) -> None:
    @settings(
        max_examples=amount,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy)
    def run(drawn: Any) -> None:
        check(drawn)

    run()


def _good(fuzzed: Fuzzed, method: str) -> list[Any]:
    return [request for name, request in good_requests(fuzzed) if name == method]


def _lives(fuzzed: Fuzzed) -> None:
    for method, request in good_requests(fuzzed):
        assert outcome(fuzzed, method, request) == "OK"


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("method", RICH)
def test_structured_requests(fuzzed: Fuzzed, method: str, amount: int) -> None:
    outcomes = Counter[str]()

    def check(request: Any) -> None:
        outcomes[outcome(fuzzed, method, request)] += 1

    _run(requests(_good(fuzzed, method), fuzzed.handles), amount, check)
    _lives(fuzzed)
    assert outcomes["INVALID_FIELD"] > 0.1 * outcomes.total(), "the strategy is too tame"
    if amount == MANY:  # few may miss it by chance
        assert outcomes["OK"] > 0.02 * outcomes.total(), "the strategy is too wild"


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("method", RICH)
def test_garbage(fuzzed: Fuzzed, method: str, amount: int) -> None:
    outcomes = Counter[str]()

    def check(data: bytes) -> None:
        outcomes[outcome(fuzzed, method, data)] += 1

    _run(garbage(_good(fuzzed, method), fuzzed.handles), amount, check)
    _lives(fuzzed)
    assert outcomes["MALFORMED_MESSAGE"] > 0.1 * outcomes.total(), "too gentle"
