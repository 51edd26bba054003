"""Flags, environment, file and defaults to one configuration: a flag beats a variable, a variable
beats the file, the file beats the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from carv_server.settings.check import check_whole
from carv_server.settings.kinds import Value
from carv_server.settings.mistakes import ConfigurationError, Mistakes, Table
from carv_server.settings.result import DEFAULT, Settings
from carv_server.settings.setting import Setting
from carv_server.settings.table import SECTIONS, SETTINGS
from carv_server.settings.teachers import parse_teachers, read_teachers
from carv_server.settings.tenants import load_tenants, read_tenants, read_toml
from carv_server.teachers.registration import EMBEDDED, TeacherRegistration
from carv_server.tenants.tenant import Tenant

__all__ = ["CONFIG_VARIABLE", "TEACHER_VARIABLE", "Given", "read_settings"]

CONFIG_VARIABLE = "CARV_CONFIG"
TEACHER_VARIABLE = "CARV_TEACHER"


@dataclass(frozen=True)
class Given:
    """What a command line says.

    Attributes:
        file: of ``--config``; None: CARV_CONFIG, or none.
        flags: text by flag, of those that were given.
        teachers: texts of ``--teacher``.
    """

    file: Path | None = None
    flags: Mapping[str, str] = field(default_factory=dict[str, str])
    teachers: Sequence[str] = ()


def read_settings(given: Given, environment: Mapping[str, str]) -> Settings:
    """The whole configuration.

    Raises:
        ConfigurationError: with every mistake of all sources.
    """
    mistakes = Mistakes()
    named = environment.get(CONFIG_VARIABLE)
    file = given.file or (Path(named) if named else None)
    content = (read_toml(file, mistakes) if file else None) or {}
    base = file.parent if file else Path()
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    tables = _tables(content, str(file), mistakes)
    for setting in SETTINGS:
        path = setting.path
        values[path], origins[path] = setting.default, DEFAULT
        try:
            if setting.flag in given.flags:
                where = setting.flag
                values[path] = setting.kind.parse(given.flags[setting.flag])
                origins[path] = f"flag {setting.flag}"
            elif setting.variable in environment:
                where = f"{setting.variable} for {setting.flag}"
                values[path] = setting.kind.parse(environment[setting.variable])
                origins[path] = f"variable {setting.variable}"
            elif setting.key in tables[setting.section]:
                where = f"{file}: {path}"
                values[path] = _from_file(setting, tables[setting.section][setting.key], base)
                origins[path] = f"file {file}"
        except ValueError as error:
            mistakes.add(where, str(error))  # pyright: ignore[reportPossiblyUnboundVariable]
    teachers, teachers_from = _teachers(given, environment, content, file, base, mistakes)
    ids = [teacher.id for teacher in teachers]
    tenants, tenants_from = _tenants(values, content, file, ids, mistakes)
    settings = Settings(values, origins, teachers, teachers_from, tenants, tenants_from)
    check_whole(settings, mistakes)
    mistakes.raise_if_any()
    return settings


def _from_file(setting: Setting, value: object, base: Path) -> Value:
    checked = setting.kind.check(value)
    if getattr(setting.kind, "path", False) and checked:
        return str(base / cast(str, checked))
    return checked


def _tables(content: Table, file: str, mistakes: Mistakes) -> dict[str, Table]:
    """The tables of the file by section, whatever they hold; unknown keys are mistakes."""
    tables: dict[str, Table] = {section: {} for section in SECTIONS}
    top = [setting.key for setting in SETTINGS if not setting.section]
    known = [*top, "teachers", "tenants", *filter(None, SECTIONS)]
    for key, value in content.items():
        if key in top:
            tables[""] = {**tables[""], key: value}
        elif key in tables and key:
            if isinstance(value, dict):
                tables[key] = cast(Table, value)
            else:
                mistakes.add(f"{file}: {key}", f"is a table: write [{key}] above its keys")
        elif key not in known:
            mistakes.unknown(f"{file}: {key}", key, known)
    for section, table in tables.items():
        keys = [setting.key for setting in SETTINGS if setting.section == section]
        for key in table:
            if key not in keys:
                mistakes.unknown(f"{file}: {section}.{key}", key, keys)
    return tables


def _teachers(
    given: Given,
    environment: Mapping[str, str],
    content: Table,
    file: Path | None,
    base: Path,
    mistakes: Mistakes,
) -> tuple[tuple[TeacherRegistration, ...], str]:
    if given.teachers:
        return parse_teachers(given.teachers, "--teacher", mistakes), "flag --teacher"
    texts = [text for text in environment.get(TEACHER_VARIABLE, "").split(";") if text]
    if texts:
        return parse_teachers(texts, TEACHER_VARIABLE, mistakes), f"variable {TEACHER_VARIABLE}"
    if "teachers" in content:
        found = read_teachers(content["teachers"], base, mistakes)
        return found, f"file {file}"
    return (EMBEDDED,), DEFAULT


def _tenants(
    values: Mapping[str, Value],
    content: Table,
    file: Path | None,
    teachers: Sequence[str],
    mistakes: Mistakes,
) -> tuple[tuple[Tenant, ...] | None, str]:
    """None without tenants: then all callers are alike."""
    named = cast(str, values["tenants_file"])
    if named and "tenants" in content:
        mistakes.add(f"{file}: tenants", "set either these or tenants_file, not both")
    if named:
        try:
            return load_tenants(Path(named), teachers), f"file {named}"
        except ConfigurationError as error:
            mistakes.found += error.mistakes
            return (), f"file {named}"
    if "tenants" in content:
        prefix = f"{file}: "
        return read_tenants(content["tenants"], prefix, teachers, mistakes), f"file {file}"
    return None, DEFAULT
