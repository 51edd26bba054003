"""Latents that the server keeps for us."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import numpy.typing as npt

__all__ = ["KeptLatents", "LatentsLike"]


@dataclass(frozen=True)
class KeptLatents:
    """Latents that were sent once and are named by a handle since, and what was sent.

    A value object: reuse it for any number of calls, wherever latents are taken. When the server
    has dropped its handle, the client sends the latents again and goes on.
    """

    handle: str
    """Content address on the server."""
    teacher: str
    """Teacher they are kept for; empty for the server's default."""
    shape: tuple[int, ...]
    """[R, *event_shape]."""
    expire_time: datetime | None = field(compare=False, default=None)
    """When the server may drop them, as told at creation; use extends it."""
    tensor: bytes = field(repr=False, compare=False, default=b"")
    """Serialized ``carv.v1.Tensor``."""


LatentsLike = npt.ArrayLike | KeptLatents
"""x by value or by handle."""
