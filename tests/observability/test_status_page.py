"""The status page: what it says, that it says nothing unescaped and needs nothing from elsewhere,
and that a browser shows it in both themes.

Breaks it (tried): a tenant's name without ``escape``; an image from another host; a style sheet
without the dark theme.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from carv_server.observability.status_page import status_html
from carv_server.observability.status_view import StatusView, TenantStatus
from carv_server.observability.watched import Quota
from tests.observability.support import fetch, watched
from tests.server.teachers import GatedTeacher, oracle_teacher, waiting
from tests.server.wire import create_async, estimate_request, path

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
EVIL = "<script>alert('x')</script>\"&" + "é" * 200


class _Reader(HTMLParser):
    """Tags with their attributes, text, and whether every tag is closed in its turn."""

    VOID = frozenset({"meta", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


async def live_view() -> tuple[StatusView, str, dict[str, str]]:
    """Of a server that has worked: the view, its page and headers."""
    async with watched(oracle_teacher()) as (server, channel):
        handle = await create_async(channel)
        for seed in range(40):
            await channel.unary_unary(path("EstimateGradient"))(
                estimate_request([handle], seed=seed, draws=8).SerializeToString()
            )
        status, headers, html = await fetch(server.observability.metrics_address, "/status")
        assert status == 200
        return server.observability.view(), html, headers


def test_it_is_whole_needs_nothing_and_says_what_there_is() -> None:
    view, html, headers = asyncio.run(live_view())
    reader = read(html)
    tags = {tag for tag, _ in reader.seen}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "form", "input"})
    for _, attributes in reader.seen:
        assert not any(name in attributes for name in ("src", "href", "xlink:href", "onclick"))
    assert (
        "url(" not in html
        and "@import" not in html
        and "http" not in re.sub(r'http-equiv="refresh"', "", html)
    )
    assert "default-src 'none'" in headers["content-security-policy"]
    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in reader.seen
    assert ("html", {"lang": "en"}) in reader.seen
    text = " ".join(reader.text)
    for said in (
        "serving",
        "mixture",
        "Tenants",
        "none",
        "Replicas: 0 busy, 1 idle",
    ):
        assert said in text, said
    assert re.search(r"\d{3} past draws; sampler nested; proposal adaptive", text)
    (svg,) = [attributes for tag, attributes in reader.seen if tag == "svg"]
    assert svg["role"] == "img" and "Profile of mixture" in (svg["aria-label"] or "")
    lines = [a for tag, a in reader.seen if tag == "polyline"]
    assert [line["class"] for line in lines] == ["norm", "prior", "weight", "proposal"]
    assert view.teachers[0].profile is not None
    assert len(html) < 40_000


def test_what_waits_is_shown_while_it_waits() -> None:
    async def main() -> None:
        teacher = GatedTeacher()
        async with watched(teacher) as (server, channel):
            handle = await create_async(channel)

            def ask(seed: int) -> asyncio.Future[bytes]:
                data = estimate_request([handle], seed=seed).SerializeToString()
                return asyncio.ensure_future(channel.unary_unary(path("EstimateGradient"))(data))

            calls = [ask(0)]
            await asyncio.to_thread(teacher.entered.wait, 10)
            calls += [ask(1), ask(2)]
            await waiting(server, 2)
            view = server.observability.view()
            assert view.requests_in_flight == 3
            assert view.tenants == (TenantStatus("none", 2, 16, 0.0, None, None),)
            (shown,) = view.teachers
            assert (shown.waiting_requests, shown.waiting_evaluations) == (2, 16)
            assert dict(shown.states) == {"busy": 1, "idle": 0, "starting": 0}
            assert shown.profile is None and "No draws yet" in status_html(view)
            teacher.gate.set()
            await asyncio.gather(*calls)

    asyncio.run(main())


def test_everything_is_escaped_and_bounded() -> None:
    view, _, _ = asyncio.run(live_view())
    quota = Quota(1200.0, 64)
    tenant = TenantStatus(EVIL, 1, 2, 3.0, 0.5, quota)
    evil = replace(
        view,
        version=EVIL[:40],
        tenants=(tenant,) * 50,
        teachers=tuple(replace(each, id=EVIL, description=EVIL[:60]) for each in view.teachers),
        left_out=7,
    )
    html = status_html(evil)
    reader = read(html)
    assert "script" not in {tag for tag, _ in reader.seen}
    assert "é" * 64 not in html
    text = " ".join(reader.text)
    assert "1,200/s, 64 in flight" in text and "7 more are not shown" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_it(theme: str, tmp_path: Path) -> None:
    """By its own pixels: paper of the theme, ink that differs from it, and the proposal's line."""
    _, html, _ = asyncio.run(live_view())
    page, picture = tmp_path / "status.html", tmp_path / "status.png"
    page.write_text(html, encoding="utf-8")
    assert CHROMIUM is not None
    subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1000,1150",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(picture) as image:
        counted = image.convert("RGB").getcolors(image.width * image.height)
    assert counted is not None
    colours = {colour: count for count, colour in counted}
    paper, line = {
        "light": ((0xFB, 0xFB, 0xFA), (0x0B, 0x62, 0xC4)),
        "dark": ((0x14, 0x17, 0x1A), (0x6D, 0xB1, 0xFF)),
    }[theme]
    assert colours[paper] > 100_000
    assert colours[line] > 1000, "two curves of two pixels' width"
    assert len(colours) > 50
