"""From bytes to messages, large ones off the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from carv.errors import Reason
from carv_server.errors import RequestError
from carv_server.request import SMALL_BYTES

__all__ = ["MessageParser"]

M = TypeVar("M", bound=Message)


class MessageParser:
    """Parses small messages at once, and larger ones on ``workers``."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self._workers = workers

    async def parse(self, data: bytes, message: type[M]) -> M:
        """Raises RequestError MALFORMED_MESSAGE."""
        try:
            if len(data) < SMALL_BYTES:
                return message.FromString(data)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._workers, message.FromString, data)
        except DecodeError:
            raise RequestError(
                Reason.MALFORMED_MESSAGE,
                f"the bytes are not a {message.DESCRIPTOR.full_name}",
            ) from None
