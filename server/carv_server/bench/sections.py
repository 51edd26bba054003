"""The sections of ``carv bench variance`` by name."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SECTION_NAMES", "wanted_sections"]

SECTION_NAMES = (
    "headline",
    "breadth",
    "grid",
    "strata",
    "weightings",
    "attribution",
    "planning",
    "refinement",
)
"""In the order in which they run; a later one may read an earlier one's tables."""

_NEEDS = {"planning": "grid"}  # reads what that one has measured


def wanted_sections(only: Sequence[str]) -> list[str]:
    """Those named and those that they need, in order; all where none is named."""
    wanted = {*only, *(_NEEDS[name] for name in only if name in _NEEDS)}
    return [name for name in SECTION_NAMES if name in wanted or not only]
