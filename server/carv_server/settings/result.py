"""A configuration that was read, with where each value came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from carv_server.settings.kinds import Value
from carv_server.teachers.registration import TeacherRegistration
from carv_server.tenants.tenant import Tenant

__all__ = ["DEFAULT", "Settings"]

DEFAULT = "default"
"""The origin of what nobody set."""


@dataclass(frozen=True)
class Settings:
    """Checked settings.

    Attributes:
        values: by ``Setting.path``.
        origins: likewise: "flag --x", "variable CARV_X", "file PATH" or "default".
        tenants: None where there are no tenants: then all callers are alike.
    """

    values: Mapping[str, Value]
    origins: Mapping[str, str]
    teachers: tuple[TeacherRegistration, ...]
    teachers_from: str
    tenants: tuple[Tenant, ...] | None
    tenants_from: str

    def text(self, path: str) -> str:
        return cast(str, self.values[path])

    def integer(self, path: str) -> int:
        return cast(int, self.values[path])

    def number(self, path: str) -> float:
        return cast(float, self.values[path])

    def flag(self, path: str) -> bool:
        return cast(bool, self.values[path])

    @property
    def requires_client_certificate(self) -> bool:
        """``tls.require_client_certificate``, by default whether there is a client CA."""
        said = cast("bool | None", self.values["tls.require_client_certificate"])
        return bool(self.text("tls.client_ca")) if said is None else said
