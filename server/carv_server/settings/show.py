"""The effective configuration as TOML, each line with where its value came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from carv_server.settings.kinds import Value
from carv_server.settings.result import Settings
from carv_server.settings.table import SECTIONS, SETTINGS
from carv_server.teachers.registration import TeacherRegistration
from carv_server.tenants.tenant import Tenant

__all__ = ["hash_table", "show", "toml_string"]

# user:password@ of a URL.
_USER = re.compile(r"(?<=//)[^/@\s]+@")


def show(settings: Settings) -> str:
    """TOML. Digests of tokens are counted, not shown, so that it can be passed on; without them
    it is no configuration of those tenants."""
    lines: list[str] = []
    for section in SECTIONS:
        if section:
            lines += ["", f"[{section}]"]
        for setting in SETTINGS:
            if setting.section != section:
                continue
            value = settings.values[setting.path]
            origin = settings.origins[setting.path]
            if value is None and setting.default_word != "auto":
                lines.append(f"# {setting.key} is not set")
            else:
                lines.append(f"{setting.key} = {_toml(value)}  # {origin}")
    for teacher in settings.teachers:
        lines += ["", f"[[teachers]]  # {settings.teachers_from}", *_teacher(teacher)]
    if settings.tenants is None:
        lines += ["", "# no tenants: callers need no credentials"]
    elif settings.text("tenants_file"):
        lines += ["", f"# {len(settings.tenants)} tenants, {settings.tenants_from}:"]
        for tenant in settings.tenants:
            lines += ["#", *(f"# {line}" for line in ("[[tenants]]", *_tenant(tenant)))]
    else:
        for tenant in settings.tenants:
            lines += ["", f"[[tenants]]  # {settings.tenants_from}", *_tenant(tenant)]
    return "\n".join(lines).strip() + "\n"


def hash_table(digests: Mapping[str, str]) -> str:
    """``sha256`` of a table of [[teachers]]."""
    inside = ", ".join(
        f"{toml_string(name)} = {toml_string(digits)}" for name, digits in digests.items()
    )
    return f"sha256 = {{ {inside} }}"


def toml_string(text: str) -> str:
    """A basic string; JSON's escapes are TOML's too, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _toml(value: Value) -> str:
    if value is None:
        return '"auto"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return toml_string(_USER.sub("***@", value)) if isinstance(value, str) else repr(value)


def _names(key: str, names: Iterable[str]) -> str:
    return f"{key} = [{', '.join(map(toml_string, sorted(names)))}]"


def _teacher(teacher: TeacherRegistration) -> Iterator[str]:
    yield f"id = {toml_string(teacher.id)}"
    yield f"folder = {toml_string(str(teacher.folder))}"
    if teacher.null_class is not None:
        yield f"null_class = {teacher.null_class}"
    if teacher.dtype is not None:
        yield f"dtype = {toml_string(teacher.dtype)}"
    if teacher.device is not None:
        yield f"device = {toml_string(teacher.device)}"
    if teacher.limits:
        yield f"limits = {{ {', '.join(f'{k} = {v}' for k, v in teacher.limits.items())} }}"
    if teacher.tenants is not None:
        yield _names("tenants", teacher.tenants)
    if teacher.sha256:
        yield hash_table(teacher.sha256)


def _tenant(tenant: Tenant) -> Iterator[str]:
    yield f"id = {toml_string(tenant.id)}"
    yield f"weight = {tenant.weight!r}"
    if tenant.evaluations_per_second is not None:
        yield f"evaluations_per_second = {tenant.evaluations_per_second!r}"
    if tenant.evaluations_in_flight is not None:
        yield f"evaluations_in_flight = {tenant.evaluations_in_flight}"
    if tenant.teachers is not None:
        yield _names("teachers", tenant.teachers)
    if tenant.token_sha256:
        yield f"# {len(tenant.token_sha256)} token_sha256, not shown"
    if tenant.spiffe_ids:
        yield _names("spiffe_ids", tenant.spiffe_ids)
