"""Readers of the values that teachers and tenants are described with."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar, cast

from carv_server.teachers.registration import is_id

__all__ = ["digest", "each", "identifier", "spiffe_id"]

T = TypeVar("T")

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*")
_MOST_SPIFFE_BYTES = 2048


def identifier(value: object) -> str:
    """Lower-case letters, digits, '.', '_' and '-', at most 63."""
    if not isinstance(value, str) or not is_id(value):
        raise ValueError(
            f"{value!r}: an id is 1 to 63 lower-case letters, digits, '.', '_' and '-', and begins "
            "with a letter or a digit"
        )
    return value


def digest(value: object) -> bytes:
    """SHA-256 in hexadecimal digits; 32 bytes."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        length = f"{len(value)} characters" if isinstance(value, str) else "no text"
        raise ValueError(f"{length}; a SHA-256 is 64 hexadecimal digits")
    return bytes.fromhex(value)


def spiffe_id(value: object) -> str:
    """``spiffe://trust-domain/path``."""
    sound = isinstance(value, str) and _SPIFFE.fullmatch(value) is not None
    if not isinstance(value, str) or not sound or len(value) > _MOST_SPIFFE_BYTES:
        raise ValueError(f"{value!r} is not of the form spiffe://trust-domain/path")
    return value


def each(read: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """A reader of arrays; the index of the first that is wrong is named."""

    def read_all(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is not an array: put it in [ ]")
        found: list[T] = []
        for i, item in enumerate(cast("list[object]", value)):
            try:
                found.append(read(item))
            except ValueError as error:
                raise ValueError(f"item {i}: {error}") from None
        return tuple(found)

    return read_all
