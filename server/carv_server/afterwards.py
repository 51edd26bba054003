"""What nobody shall wait for: accounts of an answer, and what was learned from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVarTuple

__all__ = ["afterwards"]

_log = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")


def afterwards(function: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
    """Call it in the event loop's next turn, when the answer that is being given is on its way,
    and ahead of whatever the answer leads to. What it raises is logged: nobody else can be told."""
    asyncio.get_running_loop().call_soon(_call, function, arguments)


def _call(function: Callable[[*Arguments], None], arguments: tuple[*Arguments]) -> None:
    try:
        function(*arguments)
    except Exception:  # noqa: BLE001 - a defect, in what the caller never sees
        name = getattr(function, "__qualname__", "a function")
        _log.exception("%s failed after an answer", name)
