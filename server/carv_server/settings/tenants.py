"""[[tenants]], in the configuration file or in a file of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import cast

from carv_server.settings.kinds import Kind, Number
from carv_server.settings.mistakes import Mistakes, Reader, Table, as_tables
from carv_server.settings.names import digest, each, identifier, spiffe_id
from carv_server.tenants.tenant import RESERVED_IDS, Tenant

__all__ = ["load_tenants", "read_tenants", "read_toml"]

# A tenant has a weight, quotas and a label in the metrics: there are never very many.
_MOST_TENANTS = 1000
_MOST_CREDENTIALS = 64
_MOST_FILE_BYTES = 4 << 20
_MOST_LEVELS = 16

_WEIGHT = Number(0, 1e6, above=True, whole=False)
_RATE = Number(0, 1e12, above=True, whole=False)
_IN_FLIGHT = Number(1, 1e12)


def load_tenants(file: Path, teachers: Collection[str] | None) -> tuple[Tenant, ...]:
    """The tenants of a file that holds nothing else.

    Args:
        teachers: ids that are served; None: not known.

    Raises:
        ConfigurationError: with every mistake in the file.
    """
    mistakes = Mistakes()
    content = read_toml(file, mistakes)
    tenants: tuple[Tenant, ...] = ()
    if content is not None:
        for key in content:
            if key != "tenants":
                mistakes.unknown(f"{file}: {key}", key, ["tenants"])
        tenants = read_tenants(content.get("tenants", []), f"{file}: ", teachers, mistakes)
    mistakes.raise_if_any()
    return tenants


def read_toml(file: Path, mistakes: Mistakes) -> Table | None:
    """The table in a TOML file; None with a mistake."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        mistakes.add(str(file), f"cannot be read: {error.strerror}")
        return None
    except ValueError as error:  # a path that no file can have
        mistakes.add(repr(str(file)), f"cannot be read: {error}")
        return None
    if len(data) > _MOST_FILE_BYTES:
        mistakes.add(str(file), f"above {_MOST_FILE_BYTES} bytes; is this the right file?")
        return None
    try:
        content = tomllib.loads(data.decode())
    except ValueError as error:
        mistakes.add(str(file), f"is not TOML: {error}")
        return None
    except RecursionError:
        content = None
    if content is None or _is_deeper(content, _MOST_LEVELS):
        mistakes.add(str(file), f"is nested more than {_MOST_LEVELS} levels deep")
        return None
    return content


def _is_deeper(value: object, most: int) -> bool:
    """Without recursion: dotted keys nest as deep as the file is long."""
    level = [value]
    for _ in range(most):
        level = [inner for outer in level for inner in _inside(outer)]
    return any(isinstance(inner, dict | list) for inner in level)


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()


def read_tenants(
    value: object, prefix: str, teachers: Collection[str] | None, mistakes: Mistakes
) -> tuple[Tenant, ...]:
    """Those without mistakes.

    Args:
        prefix: ahead of where, in mistakes.
        teachers: ids that are served; None: not known.
    """
    tables = as_tables(value, f"{prefix}tenants", mistakes)
    if len(tables) > _MOST_TENANTS:
        mistakes.add(f"{prefix}tenants", f"{len(tables)}; there may be {_MOST_TENANTS}")
        return ()
    tenants: list[Tenant] = []
    owners: dict[bytes | str, str] = {}
    for i, table in enumerate(tables):
        where = f"{prefix}tenants[{i}]"
        tenant = _tenant(table, where, mistakes)
        if tenant is None:
            continue
        if any(tenant.id == other.id for other in tenants):
            mistakes.add(f"{where}.id", f"tenant id {tenant.id!r} is there twice")
        for credential in (*tenant.token_sha256, *tenant.spiffe_ids):
            if credential in owners:
                key = "token_sha256" if isinstance(credential, bytes) else "spiffe_ids"
                mistakes.add(f"{where}.{key}", f"one of them is that of {owners[credential]} too")
            owners[credential] = f"tenant {tenant.id!r}"
        for teacher in sorted(tenant.teachers or ()):
            if teachers is not None and teacher not in teachers:
                mistakes.add(
                    f"{where}.teachers",
                    f"no teacher {teacher!r} is served; there are {', '.join(teachers)}",
                )
        tenants.append(tenant)
    return tuple(tenants)


def _tenant(table: Table, where: str, mistakes: Mistakes) -> Tenant | None:
    before = len(mistakes.found)
    reader = Reader(table, where, mistakes)
    if "id" not in table:
        mistakes.add(f"{where}.id", "must be set")
    tenant_id = reader.take("id", identifier, "")
    if tenant_id in RESERVED_IDS:
        mistakes.add(
            f"{where}.id",
            f"{tenant_id!r} stands for callers without a tenant in metrics; choose another",
        )
    teachers = reader.take("teachers", each(identifier), None)
    in_flight = _number(reader, "evaluations_in_flight", _IN_FLIGHT)
    tenant = Tenant(
        tenant_id,
        weight=float(_number(reader, "weight", _WEIGHT) or 1.0),
        evaluations_per_second=_number(reader, "evaluations_per_second", _RATE),
        evaluations_in_flight=cast("int | None", in_flight),
        teachers=None if teachers is None else frozenset(teachers),
        token_sha256=reader.take("token_sha256", each(digest), ()),
        spiffe_ids=reader.take("spiffe_ids", each(spiffe_id), ()),
    )
    reader.end()
    credentials = len(tenant.token_sha256) + len(tenant.spiffe_ids)
    if credentials > _MOST_CREDENTIALS:
        mistakes.add(where, f"{credentials} credentials; there may be {_MOST_CREDENTIALS}")
    if len(mistakes.found) == before and credentials == 0:
        mistakes.add(
            where, "has no credential: give it token_sha256 (`carv token new`) or spiffe_ids"
        )
    return tenant if len(mistakes.found) == before else None


def _number(reader: Reader, key: str, kind: Kind) -> float | None:
    return cast("float | None", reader.take(key, kind.check, None))
