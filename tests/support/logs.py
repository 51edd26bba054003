"""What a server on the event loop of the test logs."""

from __future__ import annotations

import pytest

from tests.support.until import until

__all__ = ["logged"]


async def logged(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    """Until something has been logged so often."""
    await until(lambda: caplog.text.count(text) >= times, f"{text!r} logged {times} times")
