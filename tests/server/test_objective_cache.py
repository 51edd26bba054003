"""Objectives that are the same to their tables share them, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from carv.v1 import objective_pb2 as pb
from carv_server.validation.checks import Violations
from carv_server.validation.objective import ObjectiveCache
from tests.support.oracle import oracle_schedule

SCHEDULE = oracle_schedule()


def objective(handle: str = "a") -> pb.Objective:
    message = pb.Objective()
    branch = message.branches.add(conditionings=[handle])
    branch.coefficient.constant = 7.5
    message.noise_coefficient.constant = -1.0
    return message


def test_conditionings_and_reference_latents_do_not_matter() -> None:
    cache = ObjectiveCache()
    first = cache.check(objective(), SCHEDULE, 8, Violations())
    other = objective("b")
    other.reference_latents.data = b"0123"
    assert first is not None and cache.check(other, SCHEDULE, 8, Violations()) is first


CHANGES: dict[str, Callable[[pb.Objective], object]] = {
    "coefficient": lambda m: setattr(m.branches[0].coefficient, "constant", 7.25),
    "another branch": lambda m: (
        m.branches.add().coefficient.SetInParent()
        or setattr(m.branches[1].coefficient, "constant", 0.0)
    ),
    "zero noise coefficient": lambda m: setattr(m.noise_coefficient, "constant", 0.0),
    "prior": lambda m: setattr(m.prior.range, "max_fraction", 0.5),
    "weighting": lambda m: setattr(m.weighting, "named", pb.NAMED_WEIGHTING_UNIFORM),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_whatever_changes_the_tables_does(change: str) -> None:
    cache = ObjectiveCache()
    first = cache.check(objective(), SCHEDULE, 8, Violations())
    other = objective()
    CHANGES[change](other)
    violations = Violations()
    found = cache.check(other, SCHEDULE, 8, violations)
    assert first is not None and found is not None and found is not first and not violations


def test_a_bad_objective_is_refused_each_time_and_few_are_kept() -> None:
    cache, bad = ObjectiveCache(), objective()
    bad.noise_coefficient.constant = float("nan")
    for _ in range(2):
        violations = Violations()
        assert cache.check(bad, SCHEDULE, 8, violations) is None and violations
    first = cache.check(objective(), SCHEDULE, 8, Violations())

    def others(scales: range) -> None:
        for scale in scales:
            other = objective()
            other.branches[0].coefficient.constant = float(scale)
            cache.check(other, SCHEDULE, 8, Violations())

    for scales in (range(40), range(40, 80)):
        others(scales)
        assert cache.check(objective(), SCHEDULE, 8, Violations()) is first, "it is in use"
    others(range(80, 144))
    assert cache.check(objective(), SCHEDULE, 8, Violations()) is not first, "64 are kept"
