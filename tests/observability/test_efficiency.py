"""The efficiency that the metrics report is the ratio of second moments that docs/metrics.md
defines; the profile shows what the history holds, and looking changes nothing.

Breaks it (tried): importance weights squared; the prior's moment with the controlled residual; bins
of the grid's first timesteps in place of the support's; means over all estimates ever.
"""

from __future__ import annotations

import numpy as np
import pytest

from carv_server.history import DrawHistories, HistoryConfig, history_key
from carv_server.observability.counts import InUse, TeacherCounts
from carv_server.observability.efficiency import live_profile, sampling_efficiency
from carv_server.observability.notes import CallNotes, Sampled
from carv_server.sampling.objective import ObjectiveTables, prior_on_range
from carv_server.sampling.past import Past
from carv_server.sampling.plan import ControlVariate, Resolved, Sampling, resolve
from carv_server.sampling.proposals import Proposal
from tests.support.oracle import oracle_schedule

SCHEDULE = oracle_schedule()
N = len(SCHEDULE)


def objective() -> ObjectiveTables:
    return ObjectiveTables(
        prior=prior_on_range(N, 0.02, 0.98),
        weighting=1.0 - SCHEDULE.alpha_bar,
        branch_coefficients=np.ones((1, N)),
        noise_coefficient=-np.ones(N),
    )


def in_use(tables: ObjectiveTables, resolved: Resolved, tenant: str = "") -> InUse:
    return InUse(Sampled(tables, (False,), "", resolved, None, None, 4), resolved, tenant)


def past() -> Past:
    second = 1.0 + 3.0 * np.linspace(0, 1, N) ** 2
    slope = np.full(N, 0.5)
    return Past(1e9, np.sqrt(second), slope, np.sqrt(second - 0.25))


def test_the_prior_itself_gains_nothing() -> None:
    tables = objective()
    resolved = resolve(Sampling(proposal=Proposal.PRIOR), tables, None, 4)
    found = sampling_efficiency(in_use(tables, resolved), past())
    assert found == pytest.approx(1.0, rel=1e-12)


def test_the_best_proposal_gains_what_cauchy_schwarz_leaves() -> None:
    """E_p[(w h)^2] / E_p[|w h|]^2, up to the share of the prior that stays in the proposal: a
    twentieth, which costs at most as much."""
    tables, known = objective(), past()
    sampling = Sampling(proposal=Proposal.ADAPTIVE, control_variate=ControlVariate.NONE)
    resolved = resolve(sampling, tables, known, 4)
    norm = tables.scale * known.root_second_moment
    best = float(tables.prior @ norm**2) / float(tables.prior @ norm) ** 2
    found = sampling_efficiency(in_use(tables, resolved), known)
    assert found is not None and 0.95 * best <= found <= best


def test_it_is_the_ratio_of_sums_with_the_control_variate_in_one_of_them() -> None:
    tables, known = objective(), past()
    resolved = resolve(Sampling(control_variate=ControlVariate.NOISE), tables, known, 4)
    p, q, w = tables.prior, resolved.table, tables.weighting
    total = {"prior": 0.0, "used": 0.0}
    for t in np.flatnonzero(p):
        total["prior"] += p[t] * (w[t] * known.root_second_moment[t]) ** 2
        total["used"] += q[t] * (p[t] / q[t] * w[t] * known.root_controlled_moment[t]) ** 2
    found = sampling_efficiency(in_use(tables, resolved), known)
    assert found == pytest.approx(total["prior"] / total["used"], rel=1e-12)


def test_the_profile_shows_the_history_of_its_tenant_and_changes_nothing() -> None:
    tables = objective()
    histories = DrawHistories(SCHEDULE, HistoryConfig(memory_draws=1e9))
    key = history_key(tables, [False], "", "team")
    histories.recall(key, 1)
    rng = np.random.default_rng(7)
    timesteps = rng.integers(0, N, 20_000)
    squares = np.exp(timesteps / 100.0)
    residuals = np.stack([squares, 0.0 * squares, 32.0 + 0.0 * squares], axis=1)
    histories.record(key, 1, timesteps, residuals)
    resolved = resolve(Sampling(), tables, None, 4)
    assert live_profile(in_use(tables, resolved, "others"), histories, SCHEDULE) is None
    before = histories.statistics(key)
    shown = live_profile(in_use(tables, resolved, "team"), histories, SCHEDULE)
    assert shown is not None and shown.draws == pytest.approx(20_000)
    assert histories.statistics(key) is before
    for each in shown.bins:
        assert 20 <= each.first <= each.last <= 980
    for each in shown.bins[1:-1]:  # those at the ends hold draws from outside the support too
        middle = (each.first + each.last + 1) // 2
        inside = (timesteps >= each.first) & (timesteps <= each.last)
        expected = tables.weighting[middle] * np.sqrt(squares[inside].mean())
        assert each.norm == pytest.approx(expected, rel=1e-9)
        assert each.draws == pytest.approx(inside.sum())
        assert shown.norm[middle - 20] == pytest.approx(expected, rel=0.2), "smoothed"
    covered = sorted(t for each in shown.bins for t in range(each.first, each.last + 1))
    assert covered == list(range(shown.timesteps[0], shown.timesteps[-1] + 1))
    for law in (shown.prior, shown.weight, shown.proposal):
        assert law.sum() == pytest.approx(1.0, rel=1e-12)


def test_means_are_over_the_last_256_estimates_only() -> None:
    tables = objective()
    resolved = resolve(Sampling(), tables, None, 4)
    counts, call = TeacherCounts(), CallNotes()
    assert counts.mean_variance() is None and counts.mean_sample_ratio() is None
    for value in [1000.0] * 50 + [1.0, 3.0] * 128:
        call.sampled = Sampled(
            tables, (False,), "", resolved, np.array([value]), np.array([2.0, 4.0]), 4
        )
        counts.on_answer(call)
    assert counts.mean_variance() == pytest.approx(2.0)
    assert counts.mean_sample_ratio() == pytest.approx(0.75)
    assert counts.sampling == {("nested", "prior", "antithetic"): 306}
    call.sampled = Sampled(tables, (False,), "", None, None, None, 4)
    counts.on_answer(call)
    assert counts.sampling["explicit", "explicit", "explicit"] == 1
    assert counts.in_use is not None and counts.in_use.resolved is resolved
