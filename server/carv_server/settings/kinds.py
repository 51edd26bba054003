"""Kinds of settings: what a value may be, from a word on a command line or from TOML."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Choice", "Flag", "Kind", "Number", "Text", "Value"]

Value = str | int | float | bool | None
"""None stands for "auto", or for a setting that is left to others."""

_TRUE, _FALSE = ("1", "yes", "true", "on"), ("", "0", "no", "false", "off")
# Python writes out numbers of a few thousand digits at most.
_LONGEST_SHOWN_BITS = 128


class Kind(Protocol):
    """What values a setting has."""

    @property
    def wanted(self) -> str:
        """Type and range, for the documentation."""
        ...

    def parse(self, text: str) -> Value:
        """From a flag or an environment variable. Raises ValueError, saying what is wrong."""
        ...

    def check(self, value: object) -> Value:
        """From TOML. Raises ValueError, saying what is wrong."""
        ...


@dataclass(frozen=True)
class Text:
    """Any string; ``path``: of a file, relative to where the setting was made."""

    path: bool = False

    @property
    def wanted(self) -> str:
        return "path" if self.path else "text"

    def parse(self, text: str) -> Value:
        return text

    def check(self, value: object) -> Value:
        if not isinstance(value, str):
            raise ValueError(f"{_shown(value)} is not text: put it in quotes")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    values: Sequence[str]

    @property
    def wanted(self) -> str:
        return ", ".join(f"`{value}`" for value in self.values)

    def parse(self, text: str) -> Value:
        if text not in self.values:
            raise ValueError(f"{text!r} is none of {', '.join(self.values)}")
        return text

    def check(self, value: object) -> Value:
        if not isinstance(value, str):
            raise ValueError(f"{_shown(value)} is none of {', '.join(self.values)}")
        return self.parse(value)


@dataclass(frozen=True)
class Flag:
    """Yes or no; ``auto``: or None."""

    auto: bool = False

    @property
    def wanted(self) -> str:
        return "`true` or `false`" + (", or `auto`" if self.auto else "")

    def parse(self, text: str) -> Value:
        if self.auto and text == "auto":
            return None
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() in _TRUE

    def check(self, value: object) -> Value:
        if self.auto and value == "auto":
            return None
        if not isinstance(value, bool):
            raise ValueError(f"{_shown(value)} is neither true nor false")
        return value


@dataclass(frozen=True)
class Number:
    """A finite number in a range.

    Attributes:
        least, most: the range, both included.
        above: ``least`` itself is too little.
        whole: no fraction.
        whole_above: no fraction above this.
        auto: "auto" is allowed, and is None.
    """

    least: float
    most: float = math.inf
    above: bool = False
    whole: bool = True
    whole_above: float = math.inf
    auto: bool = False

    @property
    def wanted(self) -> str:
        kind = "whole number" if self.whole else "number"
        least = f"{'above' if self.above else 'from'} {self.least:g}"
        most = "" if self.most == math.inf else f" to {self.most:g}"
        fractions = "" if self.whole_above == math.inf else f", whole above {self.whole_above:g}"
        return f"{kind} {least}{most}{fractions}{', or `auto`' if self.auto else ''}"

    def parse(self, text: str) -> Value:
        if self.auto and text == "auto":
            return None
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a {self._kind}") from None
        return self._in_range(value)

    def check(self, value: object) -> Value:
        if self.auto and value == "auto":
            return None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and (self.whole or not isinstance(value, float)):
            raise ValueError(f"{_shown(value)} is not a {self._kind}")
        assert isinstance(value, int | float)
        return self._in_range(value)

    @property
    def _kind(self) -> str:
        return "whole number" if self.whole else "number"

    def _in_range(self, value: float) -> float:
        try:
            finite = math.isfinite(value)
        except OverflowError:  # of a whole number beyond any float
            raise ValueError(f"{_shown(value)} is out of range") from None
        if not finite:
            raise ValueError(f"'{value}' is not a number")
        if value < self.least:
            raise ValueError(f"{value} is below {self.least:g}")
        if self.above and value == self.least:
            raise ValueError(f"{value} is not above {self.least:g}")
        if value > self.most:
            raise ValueError(f"{value} is above {self.most:g}")
        if value > self.whole_above and value != int(value):
            raise ValueError(f"{value} is neither 0 to {self.whole_above:g} nor a whole number")
        return value


def _shown(value: object) -> str:
    """As TOML would have it, cut to a line."""
    if isinstance(value, int) and value.bit_length() > _LONGEST_SHOWN_BITS:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = json.dumps(value)
    except TypeError:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
