"""Environment variables that look like settings of the server and are none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from carv_server.settings.read import CONFIG_VARIABLE, TEACHER_VARIABLE
from carv_server.settings.table import SETTINGS

__all__ = ["unknown_variables"]

_PREFIX = "CARV_"
# A host may be one of the client's too.
_OF_THE_CLIENT = frozenset({"CARV_TOKEN"})
# What Kubernetes and container links set for a service whose name begins with "carv".
_OF_A_SERVICE = re.compile(
    r"CARV(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)"
)
_URL_OF_A_SERVICE = re.compile(r"CARV(_[A-Z0-9_]+)?_PORT")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable with the server's prefix that nothing reads. No value is in
    them: it may be secret."""
    known = {setting.variable for setting in SETTINGS}
    known |= {CONFIG_VARIABLE, TEACHER_VARIABLE, *_OF_THE_CLIENT}
    return [
        _sentence(name, known)
        for name, value in sorted(environment.items())
        if name.startswith(_PREFIX) and name not in known and not _is_of_a_service(name, value)
    ]


def _is_of_a_service(name: str, value: str) -> bool:
    if _OF_A_SERVICE.fullmatch(name):
        return True
    return _URL_OF_A_SERVICE.fullmatch(name) is not None and "://" in value


def _sentence(name: str, known: set[str]) -> str:
    # The place of the setting in the file, as a name.
    by_path = {_PREFIX + s.path.replace(".", "_").upper(): s.variable for s in SETTINGS}
    near = [by_path[name]] if name in by_path else get_close_matches(name, sorted(known), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"the variable {name} is no setting of the server and has no effect{hint}"
