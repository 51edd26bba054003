"""Waiting on an event loop for what nothing tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["until"]


async def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Look every few milliseconds; fails with ``what`` once it has taken too long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.005)
