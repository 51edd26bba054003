"""What is wrong with a configuration, collected in place of raising at the first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

__all__ = ["ConfigurationError", "Mistake", "Mistakes", "Reader", "Table", "as_tables"]

T = TypeVar("T")


@dataclass(frozen=True)
class Mistake:
    """``where`` a person finds it, and what is wrong and wanted."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class ConfigurationError(ValueError):
    """A configuration with mistakes; the message has all of them, one to a line."""

    def __init__(self, mistakes: Collection[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = f"{len(self.mistakes)} mistake{'s' if len(self.mistakes) > 1 else ''}"
        lines = "".join(f"\n  {mistake}" for mistake in self.mistakes)
        super().__init__(f"{count} in the configuration:{lines}")


class Mistakes:
    """Collects them."""

    def __init__(self) -> None:
        self.found: list[Mistake] = []

    def add(self, where: str, what: str) -> None:
        self.found.append(Mistake(where, what))

    def unknown(self, where: str, key: str, known: Collection[str]) -> None:
        """A key that there is not, with what was probably meant."""
        near = get_close_matches(key, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
        self.add(where, f"unknown key{hint}")

    def raise_if_any(self) -> None:
        """Raises ConfigurationError."""
        if self.found:
            raise ConfigurationError(self.found)


Table = Mapping[str, Any]


def as_tables(value: object, where: str, mistakes: Mistakes) -> list[Table]:
    """An array of tables, [] with a mistake where it is none."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):  # pyright: ignore[reportUnknownVariableType]
        return value  # pyright: ignore[reportUnknownVariableType]
    mistakes.add(where, f"write [[{where.rpartition(' ')[2]}]] above each of them")
    return []


class Reader:
    """The keys of one table, each read once.

    Args:
        where: the table, as mistakes name it.
    """

    def __init__(self, table: Table, where: str, mistakes: Mistakes) -> None:
        self._left = dict(table)
        self._where = where
        self._mistakes = mistakes
        self._known: list[str] = []

    def take(self, key: str, read: Callable[[object], T], default: T) -> T:
        """A key's value; the default where it is not there, or with a mistake.

        Args:
            read: raises ValueError, saying what is wrong.
        """
        self._known.append(key)
        if key not in self._left:
            return default
        try:
            return read(self._left.pop(key))
        except ValueError as error:
            self._mistakes.add(f"{self._where}.{key}", str(error))
            return default

    def end(self) -> None:
        """What is left is unknown."""
        for key in self._left:
            self._mistakes.unknown(f"{self._where}.{key}", key, self._known)
