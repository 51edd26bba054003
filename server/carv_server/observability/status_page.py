"""The status page: one HTML document without scripts or anything from elsewhere, read again every
few seconds by itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from carv_server.observability.profile_svg import profile_svg
from carv_server.observability.status_style import STYLE
from carv_server.observability.status_view import StatusView, TeacherStatus, TenantStatus
from carv_server.observability.watched import Quota

__all__ = ["STATUS_HEADERS", "status_html"]

STATUS_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
}
_REFRESH_SECONDS = 5
_MOST_NAME = 64


def status_html(view: StatusView) -> str:
    """The whole document. Every text in it is escaped, and every list bounded."""
    teachers = "".join(map(_teacher, view.teachers))
    left_out = f"<p class=note>{view.left_out} more are not shown.</p>" if view.left_out else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>CARV: {escape(view.state)}</title><style>{STYLE}</style></head><body><header>"
        f'<h1>CARV <span class="state {escape(view.state)}">{escape(view.state)}</span></h1>'
        f"<p class=note>version {escape(view.version)}, up {_span(view.uptime_seconds)}; rates "
        f"over the last {view.seconds:.0f} s; read again every {_REFRESH_SECONDS} s</p></header>"
        f"<main>{_headline(view)}{_tenants(view.tenants)}{teachers}{left_out}</main></body></html>"
    )


def _headline(view: StatusView) -> str:
    return _cards(
        (
            ("requests", f"{_number(view.requests_per_second)}/s"),
            ("of them failed", f"{_number(view.failures_per_second)}/s"),
            ("evaluations", f"{_number(view.evaluations_per_second)}/s"),
            ("requests in flight", f"{view.requests_in_flight}"),
            ("open streams", f"{view.open_streams}"),
        )
    )


def _tenants(tenants: Sequence[TenantStatus]) -> str:
    if not tenants:
        return ""
    rows = [
        (
            _name(tenant.name),
            f"{_number(tenant.evaluations_per_second)}/s",
            "–" if tenant.share is None else f"{tenant.share:.0%}",
            f"{tenant.waiting_requests}",
            f"{tenant.waiting_evaluations:,}",
            _quota(tenant.quota),
        )
        for tenant in tenants
    ]
    heads = ("tenant", "evaluations", "share", "waiting requests", "waiting evaluations", "quota")
    return f"<section><h2>Tenants</h2>{_table('', heads, rows)}</section>"


def _teacher(teacher: TeacherStatus) -> str:
    name = _name(teacher.id)
    what = ", ".join(escape(word) for word in (teacher.description, teacher.device) if word)
    return (
        f"<section><h2>{name} <small>{what}</small></h2>{_teacher_cards(teacher)}"
        f"{_replicas(teacher)}{_profile(teacher, name)}</section>"
    )


def _teacher_cards(teacher: TeacherStatus) -> str:
    full = teacher.waiting_evaluations / teacher.waiting_evaluations_limit
    return _cards(
        (
            ("evaluations", f"{_number(teacher.evaluations_per_second)}/s"),
            ("devices busy", f"{min(1.0, teacher.busy_share):.0%}"),
            ("microbatches full", "–" if teacher.fill is None else f"{teacher.fill:.0%}"),
            ("waiting requests", f"{teacher.waiting_requests}"),
            ("waiting evaluations", f"{teacher.waiting_evaluations:,}"),
            ("queue full", f"{full:.0%}"),
        )
    )


def _replicas(teacher: TeacherStatus) -> str:
    rows = [
        (
            f"{number}",
            "busy" if replica.microbatches_in_flight else "idle",
            f"{replica.microbatches_in_flight}",
            f"{replica.evaluations_in_flight}",
            _seconds(replica.launch_seconds),
            _seconds(replica.row_seconds),
        )
        for number, replica in enumerate(teacher.replicas)
    ]
    said = ", ".join(f"{count} {escape(state)}" for state, count in teacher.states.items())
    if not rows:
        return f"<p class=note>Replicas: {said}.</p>"
    heads = ("replica", "state", "microbatches", "evaluations", "a launch costs", "a row costs")
    return _table(f"Replicas: {said}", heads, rows)


def _profile(teacher: TeacherStatus, name: str) -> str:
    profile = teacher.profile
    if profile is None:
        return "<p class=note>No draws yet to show a profile of.</p>"
    facts = [
        f"{_number(profile.draws)} past draws",
        f"sampler {profile.sampler}",
        f"proposal {profile.proposal_name}",
        f"coupling {profile.coupling}",
        f"control variate {profile.control_variate}",
    ]
    if profile.efficiency is not None:
        facts.append(f"second moment under the prior over that in use {profile.efficiency:.3g}")
    if teacher.sample_ratio is not None:
        facts.append(f"effective sample {teacher.sample_ratio:.0%} of K")
    if teacher.noise_variance is not None:
        facts.append(f"noise variance {teacher.noise_variance:.3g}")
    said = "; ".join(map(escape, facts))
    return f"<figure>{profile_svg(profile, name)}<figcaption>{said}.</figcaption></figure>"


def _cards(cards: Sequence[tuple[str, str]]) -> str:
    inside = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cards)
    return f"<dl>{inside}</dl>"


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are escaped already."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    said = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _quota(quota: Quota | None) -> str:
    if quota is None:
        return "–"
    parts: list[str] = []
    if quota.evaluations_per_second is not None:
        parts.append(f"{_number(quota.evaluations_per_second)}/s")
    if quota.evaluations_in_flight is not None:
        parts.append(f"{quota.evaluations_in_flight} in flight")
    return ", ".join(parts) or "none"


def _name(text: str) -> str:
    return escape(text if len(text) <= _MOST_NAME else text[: _MOST_NAME - 1] + "…")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    if value <= 0:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _span(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days} d"] * (days > 0) + [f"{hours} h"] * (hours > 0) + [f"{minutes} min"]
    return " ".join(parts)
