"""``--teacher``, CARV_TEACHER and [[teachers]] to registrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from carv_server.settings.kinds import Choice, Number, Text
from carv_server.settings.mistakes import Mistakes, Reader, Table, as_tables
from carv_server.settings.names import digest, each, identifier
from carv_server.settings.table import SETTINGS
from carv_server.teachers.registration import TeacherRegistration, parse_registration

__all__ = ["check_teachers", "parse_teachers", "read_teachers"]

_MOST_TEACHERS = 64
_DTYPES = Choice(("auto", "float32", "float16", "bfloat16"))


def parse_teachers(
    texts: Sequence[str], where: str, mistakes: Mistakes
) -> tuple[TeacherRegistration, ...]:
    """Registrations as flags have them."""
    found: list[TeacherRegistration] = []
    for text in texts:
        try:
            found.append(parse_registration(text))
        except ValueError as error:
            mistakes.add(where, str(error))
    return tuple(found)


def read_teachers(value: object, base: Path, mistakes: Mistakes) -> tuple[TeacherRegistration, ...]:
    """Those without mistakes; folders are relative to ``base``."""
    found: list[TeacherRegistration] = []
    for i, table in enumerate(as_tables(value, "teachers", mistakes)):
        teacher = _teacher(table, f"teachers[{i}]", base, mistakes)
        if teacher is not None:
            found.append(teacher)
    return tuple(found)


def check_teachers(teachers: Sequence[TeacherRegistration], mistakes: Mistakes) -> None:
    """Ids that are there twice, folders and files that are not there."""
    if len(teachers) > _MOST_TEACHERS:
        mistakes.add("teachers", f"{len(teachers)}; there may be {_MOST_TEACHERS}")
    seen: set[str] = set()
    for teacher in teachers:
        where = f"teacher {teacher.id!r}"
        if teacher.id in seen:
            mistakes.add("teachers", f"teacher id {teacher.id!r} is registered twice")
        seen.add(teacher.id)
        if not teacher.folder.is_dir():
            mistakes.add(where, f"{teacher.folder} is not a folder")
            continue
        for name in teacher.sha256:
            if not (teacher.folder / name).is_file():
                mistakes.add(f"{where}.sha256", f"{teacher.folder / name} is no file")


def _teacher(
    table: Table, where: str, base: Path, mistakes: Mistakes
) -> TeacherRegistration | None:
    before = len(mistakes.found)
    reader = Reader(table, where, mistakes)
    for key in ("id", "folder"):
        if key not in table:
            mistakes.add(f"{where}.{key}", "must be set")
    teacher_id = reader.take("id", identifier, "")
    folder = cast(str, reader.take("folder", Text().check, ""))
    tenants = reader.take("tenants", each(identifier), None)
    teacher = TeacherRegistration(
        teacher_id,
        base / folder,
        null_class=cast("int | None", reader.take("null_class", Number(0).check, None)),
        dtype=cast("str | None", reader.take("dtype", _DTYPES.check, None)),
        device=cast("str | None", reader.take("device", Text().check, None)),
        limits=_limits(reader, where, mistakes),
        tenants=None if tenants is None else frozenset(tenants),
        sha256=reader.take("sha256", _digests, {}),
    )
    reader.end()
    return teacher if len(mistakes.found) == before else None


def _limits(reader: Reader, where: str, mistakes: Mistakes) -> dict[str, int]:
    """Those of ``limits`` that are a teacher's own to have."""
    table = reader.take("limits", _table, {})
    inner = Reader(table, f"{where}.limits", mistakes)
    found: dict[str, int] = {}
    for setting in SETTINGS:
        # A stream may ask several teachers.
        if setting.section == "limits" and setting.key != "max_stream_requests":
            value = inner.take(setting.key, setting.kind.check, None)
            if value is not None:
                found[setting.key] = cast(int, value)
    inner.end()
    return found


def _table(value: object) -> Table:
    if not isinstance(value, dict):
        raise ValueError("is a table: write { max_draws = 64 }")
    return cast(Table, value)


def _digests(value: object) -> dict[str, str]:
    """Hexadecimal digits by path within the folder."""
    if not isinstance(value, dict):
        raise ValueError('write { "file" = "digits" }, as `carv config hash FOLDER` does')
    found: dict[str, str] = {}
    for name, digits in cast("dict[str, object]", value).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{name!r} is not a path within the folder")
        try:
            found[path.as_posix()] = digest(digits).hex()
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    return found
