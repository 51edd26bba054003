"""What the operator states of a teacher. Free of torch, so that it can be checked at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["EMBEDDED", "TeacherRegistration", "is_id", "parse_registration"]

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def is_id(text: str) -> bool:
    """Whether it may be the id of a teacher or a tenant: 1 to 63 lower-case letters, digits, '.',
    '_' and '-', the first a letter or a digit."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class TeacherRegistration:
    """What ``--teacher`` or a table of ``[[teachers]]`` states.

    Attributes:
        id: the name that clients use.
        folder: diffusers layout, or a folder with ``mixture.json`` or ``simulated.json``.
        null_class: class id of the unconditional input of a class-conditional model.
        dtype: number format by name or "auto"; None is the server's own.
        device: as ``ServerConfig.device``; None is the server's own.
        limits: in place of the server's own, by name of ``RequestLimits``.
        tenants: ids of those who may use it; None: all.
        sha256: hexadecimal SHA-256 by path within the folder, of every file of weights. Nothing is
            loaded unless all of them agree. Empty: not checked.
    """

    id: str
    folder: Path
    null_class: int | None = None
    dtype: str | None = None
    device: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    tenants: frozenset[str] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


EMBEDDED = TeacherRegistration("shapes", Path(__file__).parent / "embedded" / "shapes")
"""The trained teacher that the package ships."""


def parse_registration(text: str) -> TeacherRegistration:
    """``ID=FOLDER`` or ``ID=FOLDER,null_class=N``.

    Raises:
        ValueError: with the form that is wanted.
    """
    teacher_id, equals, rest = text.partition("=")
    if not equals or not rest or not is_id(teacher_id):
        raise ValueError(
            f"{text!r}: expected ID=FOLDER[,null_class=N], ID of lower-case letters, digits, "
            "'.', '_' and '-'"
        )
    folder, comma, option = rest.partition(",null_class=")
    if comma and not option.isdigit():
        raise ValueError(f"{text!r}: null_class must be a class id, 0 or more")
    return TeacherRegistration(teacher_id, Path(folder), int(option) if comma else None)
