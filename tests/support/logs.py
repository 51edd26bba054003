"""What a server on the event loop of the test logs."""

from __future__ import annotations

import asyncio

import pytest

__all__ = ["logged"]


async def logged(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    """Until something has been logged so often."""
    for _ in range(1000):
        if caplog.text.count(text) >= times:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not logged {times} times: {text!r}, but\n{caplog.text}")
